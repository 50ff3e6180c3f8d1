"""`baton context`: name the systems that you operate, and choose one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from services.router.cli import contexts
from services.router.cli.contexts import DEFAULT_ADDRESS, FIELDS, Contexts
from services.router.cli.options import DryRun, Shown, Tls, Yes, agree, command, without_command


@dataclass(frozen=True)
class Local(Shown):
    """Options of a command that changes a file of this user."""

    dry_run: DryRun = False
    yes: Yes = False


@dataclass(frozen=True)
class Adding(Tls):
    """The options that a context gives."""

    address: Annotated[str, typer.Option(envvar="BATON_CONTROL", help="Control address of a router, host:port.")] = (
        DEFAULT_ADDRESS
    )
    token_file: Annotated[
        Path | None, typer.Option(envvar="BATON_TOKEN_FILE", help="File with your token. It stays where it is.")
    ] = None
    dry_run: DryRun = False
    yes: Yes = False


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name from `baton context`.", autocompletion=contexts.matching_names)
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The systems that you operate: list, add, use or remove them.")
    without_command(group, Shown)(list_contexts)
    command(group, "list", Shown)(list_contexts)
    command(group, "add", Adding)(add)
    command(group, "use", Local)(use)
    command(group, "remove", Local)(remove)
    app.add_typer(group, name="context")


def list_contexts(options: Shown) -> None:
    """List the contexts. `*` marks the one in use.

    \b
    JSON keys: file used
      contexts: list of name used address token_file tls_ca tls_certificate
        tls_key tls_server_name
    """
    from services.router.cli import show

    found = contexts.read()
    view = _view(found)
    if options.json:
        show.print_json(view)
    elif not view["contexts"]:
        show.show("there is no context: baton context add NAME --address HOST:PORT")
    else:
        table = show.table_of("", "context", "address", "token file", "TLS")
        for one in view["contexts"]:
            mark = "*" if one["used"] else ""
            table.add_row(mark, one["name"], one["address"], one["token_file"], one["tls_ca"] or "off")
        show.show(table)


def add(
    options: Adding,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name: letters, digits, . _ and -")],
) -> None:
    """Keep the options --address, --token-file and --tls-... under a name. The token stays in its file.

    The first context is in use at once. A context of that name is replaced.

    \b
    JSON keys: those of `baton context`, dry_run effects
    """
    given = {key: getattr(options, key) for key in FIELDS}
    kept = {
        key: str(value.absolute() if hasattr(value, "absolute") else value) for key, value in given.items() if value
    }
    before = contexts.read()
    after = before.add(name, kept)
    if not before.used:
        after = after.use(name)
    replaced = ", instead of the former one" if name in before.named else ""
    _change(options, after, [f"{name} is {options.address}{replaced}", *_used(before, after)])


def use(options: Local, name: Name) -> None:
    """Let commands without --context go to this system.

    \b
    JSON keys: those of `baton context`, dry_run effects
    """
    before = contexts.read()
    after = before.use(name)
    _change(options, after, _used(before, after) or [f"{name} is in use already"])


def remove(options: Local, name: Name) -> None:
    """Forget a context. Its files stay.

    \b
    JSON keys: those of `baton context`, dry_run effects
    """
    before = contexts.read()
    after = before.remove(name)
    _change(options, after, [f"{name} is forgotten", *_used(before, after)])


def _used(before: Contexts, after: Contexts) -> list[str]:
    if before.used == after.used:
        return []
    return [f"commands without --context go to {after.used}" if after.used else "no context is in use"]


def _change(options: Any, after: Contexts, effects: list[str]) -> None:
    from services.router.cli import show

    # A file of the user's own: nothing to confirm.
    agreed = agree(replace(options, yes=True), effects)
    if agreed:
        contexts.write(after)
    if options.json:
        show.print_json({**_view(after), **agreed.view})


def _view(found: Contexts) -> dict[str, Any]:
    return {
        "file": str(contexts.path()),
        "used": found.used,
        "contexts": [
            {"name": name, "used": name == found.used, **{key: options.get(key, "") for key in FIELDS}}
            for name, options in sorted(found.named.items())
        ],
    }

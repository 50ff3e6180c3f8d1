"""The tree of commands. Each module in `MODULES` has a function `register(app)`.

Commands import their dependencies when they run, so that help and usage errors appear at once. For the same reason a
command line that begins with a command imports and builds only this command's module.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperGroup

from services.router.cli.contexts import matching_names
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Output, fail

MODULES: Mapping[str, tuple[str, ...]] = {
    "overview": ("status", "journal", "doctor"),
    "changes": ("phase", "canary", "hold"),
    "gates": ("gates",),
    "flags": ("flags", "explain"),
    "identity": ("identity",),
    "jobs": ("backfill", "jobs"),
    "audit": ("audit",),
    "reconcile": ("reconcile", "validate"),
    "replay": ("replay",),
    "recover": ("recover", "seize"),
    "conflicts": ("conflicts",),
    "approvals": ("approvals", "approve", "withdraw", "two-person"),
    "records": ("records",),
    "events": ("events",),
    "rehearse": ("rehearse", "rollback"),
    "probe": ("probe",),
    "shadow": ("shadow",),
    "clients": ("clients",),
    "ledger": ("ledger",),
    "certificate": ("certificate",),
    "retire": ("retire",),
    "mcp": ("mcp",),
    "bench": ("bench",),
    "chaos": ("chaos",),
    "demo": ("demo",),
    "context": ("context",),
    "config": ("config",),
}
"""The modules beside this one, in the order of the help text, and the words that each registers."""

HELP = """Move a live service from A to B and back without losing a write.

Every command talks to a router's control address. A command that changes something first prints its effects, then asks
for confirmation. Without a terminal it needs --yes.

`-o json` prints one object: a list under one key, a plan with dry_run and effects, an error (on stderr) under "error".

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 blocked by a gate that fails, 4 blocked by a gate without evidence,
5 refused: no valid token or certificate, or a role is missing,
6 a second admin must approve,
7 --timeout has ended the wait: the work goes on.
"""

_ASKS_JSON = re.compile(r"(-o|--output=?)json")


class Commands(TyperGroup):
    """The root command. With `-o json` it prints usage errors as JSON too."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if not _ASKS_JSON.search("".join(words)):
            return super().main(words, *rest, **more)
        try:
            code = super().main(words, *rest, **{**more, "standalone_mode": False})
        except ClickException as error:
            code = fail(CommandFailed(error.format_message(), Exit.USAGE), as_json=True).exit_code
        except typer.Abort:
            code = fail(CommandFailed("interrupted; nothing was changed"), as_json=True).exit_code
        sys.exit(code if isinstance(code, int) else Exit.OK)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"baton {version('baton')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="As after the verb, which wins.", metavar="TEXT")] = None,
    token_file: Annotated[Path | None, typer.Option(help="As after the verb.")] = None,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="As after the verb.")] = None,
    system: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="As after the verb.", autocompletion=matching_names),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Accept the options of every command before the verb too."""
    given = {"address": address, "token_file": token_file, "output": output, "system": system}
    context.obj = {name: value for name, value in given.items() if value is not None}


def tree(words: Sequence[str] = ()) -> typer.Typer:
    """The commands that a command line with these words needs: all of them, if its first word is not a command's."""
    app = typer.Typer(
        name="baton",
        cls=Commands,
        help=HELP,
        no_args_is_help=True,
        add_completion=True,
        # Importing rich for the help text takes several times as long.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    needed = [name for name, verbs in MODULES.items() if words and words[0] in verbs]
    for name in needed or MODULES:
        import_module(f"services.router.cli.{name}").register(app)
    return app

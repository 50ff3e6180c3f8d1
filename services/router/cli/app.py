"""All commands in one tree. A module of commands has `register(app)` and is named in `MODULES`.

Each command imports what it needs when it runs: help and refusals come at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperGroup

from services.router.cli import (
    audit,
    bench,
    changes,
    chaos,
    clients,
    conflicts,
    demo,
    events,
    flags,
    gates,
    jobs,
    ledger,
    looks,
    mcp,
    probe,
    reconcile,
    records,
    recover,
    rehearse,
    replay,
    shadow,
)
from services.router.cli.options import CommandFailed, Exit, Output, fail

MODULES = (
    looks,
    changes,
    gates,
    flags,
    jobs,
    audit,
    reconcile,
    replay,
    recover,
    conflicts,
    records,
    events,
    rehearse,
    probe,
    shadow,
    clients,
    ledger,
    mcp,
    bench,
    chaos,
    demo,
)

HELP = """Move a live service from A to B and back, and lose nothing.

Every command talks to a router's control address. What changes something says first what it will do; it asks when it
is typed at a terminal, and elsewhere does it only with --yes.

`-o json` prints one object: a list under one key, a plan with dry_run and effects, an error (on stderr) under "error".

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 blocked by a gate that fails, 4 blocked by a gate without evidence.
"""

_ASKS_JSON = re.compile(r"(-o|--output=?)json")


class Commands(TyperGroup):
    """The root: a refusal of the command line itself is said in JSON too, if that was asked for."""

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


app = typer.Typer(
    name="baton",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=True,
    # Plain help: it is there in a fraction of the time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"baton {version('baton')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="As behind the verb, where it wins.", metavar="TEXT")] = None,
    token_file: Annotated[Path | None, typer.Option(help="As behind the verb.")] = None,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="As behind the verb.")] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The options of every command, before the verb."""
    given = {"address": address, "token_file": token_file, "output": output}
    context.obj = {name: value for name, value in given.items() if value is not None}


for _module in MODULES:
    _module.register(app)

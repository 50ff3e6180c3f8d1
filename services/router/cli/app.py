"""All commands in one tree. A module of commands has `register(app)` and is named in `MODULES`.

Each command imports what it needs when it runs: help and refusals come at once.
"""

from __future__ import annotations

import typer

from services.router.cli import (
    audit,
    bench,
    changes,
    chaos,
    conflicts,
    demo,
    events,
    flags,
    jobs,
    ledger,
    looks,
    reconcile,
    recover,
    rehearse,
    replay,
    shadow,
)

MODULES = (
    looks,
    changes,
    flags,
    jobs,
    audit,
    reconcile,
    replay,
    recover,
    conflicts,
    events,
    rehearse,
    shadow,
    ledger,
    bench,
    chaos,
    demo,
)

HELP = """Move a live service from A to B and back, and lose nothing.

Every command talks to a router's control address. What changes something says first what it will do; it asks when it
is typed at a terminal, and elsewhere does it only with --yes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 blocked by a gate that fails, 4 blocked by a gate without evidence.
"""

app = typer.Typer(
    name="baton",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    # Plain help: it is there in a fraction of the time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for _module in MODULES:
    _module.register(app)

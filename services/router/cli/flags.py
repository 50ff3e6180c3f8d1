"""`baton flags` and `baton explain`: flags, and the routing of a call."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from services.router.cli import complete
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_flag
from services.router.cli.options import Common, Moving, command
from services.router.core import phase

if TYPE_CHECKING:
    pass


def register(app: typer.Typer) -> None:
    flags = typer.Typer(help="Kill switches: for everything, and for each operation.", no_args_is_help=True)
    command(flags, "list", Common)(list_flags)
    command(flags, "set", Moving)(set_flag)
    app.add_typer(flags, name="flags")
    command(app, "explain", Common)(explain)


def list_flags(options: Common) -> None:
    """Show every flag as the router sees it: its value and its source.

    \b
    JSON keys: generation
      flags: list of {Flag}
    value is true, false or null (unset: the next rule decides).
    good_seconds: time since its source last worked; null is never.
    trouble: the source's current error; meanwhile its last good value
    is in force.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(options) as router:
        answer = router.call("ListFlags", pb.ListFlagsRequest())
    view = views.view_of(answer)
    if options.json:
        show.print_json(view)
    else:
        show.show(show.flags_table(view["flags"]))


def set_flag(
    options: Moving,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name from `baton flags list`.", autocompletion=complete.flags)
    ],
    value: Annotated[str, typer.Argument(metavar="true|false|unset", help="true: to B; false: to A.")],
) -> None:
    """Set a flag at every router, or unset it. A flag set here takes
    precedence over the flag provider.

    \b
    JSON keys: {Setting} (after the change)
      before (the same keys, before it) dry_run effects
    """
    wanted = parse_flag(value)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control
    from services.router.cli.setting_change import Change, plan_of
    from services.router.core.effects import of_flag

    with control(options) as router:
        names = [flag.name for flag in router.call("ListFlags", pb.ListFlagsRequest()).flags]
        if name not in names:
            raise CommandFailed(f"flag: {name!r} does not exist: one of {', '.join(names)}", Exit.USAGE)
        planned = plan_of(router)
        request = pb.SetFlagRequest(
            actor=options.who, reason=options.reason, generation=planned.setting.generation, name=name, value=wanted
        )
        change = Change(
            lambda setting: phase.set_flag(setting, name, wanted), "SetFlag", request, of_flag(name, wanted)
        )
        change.run(options, router, planned)


def explain(
    options: Common,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The record, sandboxes/x; leave it out for a list.")
    ] = "",
    op: Annotated[
        str, typer.Option(help="The operation: create, get, list, update, delete.", autocompletion=complete.operations)
    ] = "get",
    at: Annotated[str, typer.Option(metavar="ROUTER", help="Ask the router at this control address.")] = "",
) -> None:
    """Show where a router would send a call now, the rule that decides it, and
    the stores' rows of the record. Changes nothing.

    \b
    JSON keys: target rule because then bucket canary_buckets setting_stale
      setting: {Setting}
      flags: list of {Flag}
      rows: list of {ExplainResponse.Row}
    bucket is null for a list; owner is null while no store owns the record.
    """
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show, views
    from services.router.cli.client import control

    with control(dataclasses.replace(options, address=at or options.address)) as router:
        answer = router.call("Explain", pb.ExplainRequest(key=name, operation=op.strip().lower()))
    view = views.view_of(answer)
    if options.json:
        show.print_json(view)
    else:
        show.show(show.explanation_screen(view))

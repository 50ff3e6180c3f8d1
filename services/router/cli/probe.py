"""`baton probe`: synthetic calls, for gates that get too few calls from clients."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.router.cli.chaos import parse_duration
from services.router.cli.failure import CommandFailed
from services.router.cli.options import Changing, agree, command


def register(app: typer.Typer) -> None:
    command(app, "probe", Changing)(probe)


def probe(
    options: Changing,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="Duration: 30s, 5m; at most 1h.")] = "30s",
    rate: Annotated[float, typer.Option(min=1, max=200, help="Calls per second.")] = 20.0,
    writes: Annotated[
        bool, typer.Option("--writes/--reads-only", help="Half of the calls write, on names of the probe's own.")
    ] = False,
) -> None:
    """Make synthetic calls at the router, as a client would, for gates with
    too few samples. Reads use existing records. Writes leave no record, and
    lists and watches do not show them.

    \b
    JSON keys: {ProbeResponse} dry_run effects
    Ends with Ctrl-C. Exits with 1 if calls failed by a fault.
    """
    seconds = parse_duration("--for", lasting)

    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli import show
    from services.router.cli.client import control
    from services.router.cli.views import view_of

    kind = "half of them write, on names of the probe's own" if writes else "all of them read"
    effects = [
        f"{rate:.0f} calls/s for {seconds:.0f} s at this router; {kind}",
        "gates and automatic rollback count them",
    ]
    view: dict[str, Any] = {}
    agreed = agree(options, effects)
    if agreed:
        request = pb.ProbeRequest(actor=options.who, reason=options.reason, seconds=seconds, rate=rate, writes=writes)
        with control(options) as router:
            for answer in router.stream("Probe", request):
                view = view_of(answer)
                if not options.json:
                    typer.echo(_line(view), err=True)
    if options.json:
        show.print_json({**view, **agreed.view})
    elif view:
        show.show(_line(view))
    if view.get("faults"):
        raise CommandFailed(f"{view['faults']} calls failed: {view['trouble']}")


def _line(view: dict[str, Any]) -> str:
    return (
        f"{view['seconds']:.0f} s: {view['reads']} reads, {view['writes']} writes, {view['faults']} faults;"
        f" A answered {view['answered_by_a']}, B {view['answered_by_b']}"
    )

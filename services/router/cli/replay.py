"""The command that gives a part of the log to a store again."""

from __future__ import annotations

from typing import Annotated

import typer

from libs.text import plain
from services.router.cli.events import NAME_HELP, START_HELP
from services.router.cli.inputs import parse_start, parse_store
from services.router.cli.jobs import RATE_HELP, Wanted, follow, parse_rate, run_job
from services.router.cli.options import Changing, command


def register(app: typer.Typer) -> None:
    command(app, "replay", Changing)(replay)


def replay(
    options: Changing,
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="service_layer (B) or simple_mcp (A).")],
    start: Annotated[str, typer.Option("--from", metavar="START", help=START_HELP)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help=NAME_HELP)] = "",
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Until it is finished; shows how far it is.")] = False,
) -> None:
    """Give events of the log to a store again. It keeps those that are newer than what it has, so this is safe to
    repeat; its own feed goes on as it was. No event makes it the owner of a record unless the other store's row
    confirms it; such events are withheld and reported. Both stores must serve.

    It is a job: `baton jobs` pauses, resumes, tunes it.

    \b
    --dry-run reads all of them and says how many would be applied.
    JSON keys: those of `baton jobs show`, dry_run effects
      report: to start name dry_run applied known unreadable others places withheld withheld_places
    With --wait, the last line is the result.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli.client import control

    store, begin, per_second = parse_store(to), parse_start(start), parse_rate(rate)
    with control(options) as router:
        # Refused at once, before there is a job, when the log does not hold the beginning.
        request = events_pb2.LookUpEventsRequest(start=begin, name=name)
        events = router.call("LookUpEvents", request).events
    dry_run = "yes" if options.dry_run else "no"
    wanted = Wanted("replay", {"to": store, "start": begin, "name": name, "dry_run": dry_run}, per_second)
    if options.dry_run:
        _preview(options, wanted)
        return
    pace = f"at most {plain(per_second)} events/s" if per_second else "as fast as the live traffic allows"
    which = f", and {store} gets those of {name}" if name else f", and {store} gets them"
    effects = [f"{events} events from {begin} on are read{which}, {pace}; it keeps what is newer than what it has"]
    run_job(options, wanted, effects, wait=wait)


def _preview(options: Changing, wanted: Wanted) -> None:
    """A job too, which changes nothing but the list of jobs."""
    from services.router.cli import show
    from services.router.cli.client import control

    with control(options) as router:
        view = follow(router, options, router.call("StartJob", wanted.request(options)).job.id)
    if options.json:
        effects = [f"{view['note']}: of {view['done']} events"]
        show.print_json({**view, "dry_run": True, "effects": effects})
    else:
        show.show(f"{view['note']}: of {view['done']} events. Nothing was changed.")

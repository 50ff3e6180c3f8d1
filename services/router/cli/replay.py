"""`baton replay`: apply a part of the log to a store again."""

from __future__ import annotations

from typing import Annotated

import typer

from libs.text import plain
from services.router.cli.events import NAME_HELP, START_HELP
from services.router.cli.inputs import parse_start, parse_store
from services.router.cli.jobs import RATE_HELP, NewJob, follow, parse_rate, run_job
from services.router.cli.options import Starting, command

_UNSIGNED_HELP = "Apply events without a right code, too, if they are older than event_auth = require. Journaled."


def register(app: typer.Typer) -> None:
    command(app, "replay", Starting)(replay)


def replay(
    options: Starting,
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="service_layer (B) or simple_mcp (A).")],
    start: Annotated[str, typer.Option("--from", metavar="START", help=START_HELP)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help=NAME_HELP)] = "",
    rate: Annotated[str, typer.Option(metavar="N", help=RATE_HELP)] = "0",
    accept_unsigned: Annotated[bool, typer.Option("--accept-unsigned", help=_UNSIGNED_HELP)] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has finished, and show progress.")] = False,
) -> None:
    """Apply events of the log to a store again. The store ignores events that are not newer than its rows, so this is
    safe to repeat; its own feed is not affected. An event that would make the store a record's owner is withheld and
    reported, unless the other store's row confirms it. Both stores must serve. If the store requires codes of events,
    one without a right code is refused.

    It is a job: `baton jobs` pauses, resumes, tunes it.

    \b
    --dry-run reads all of them and counts those that would be applied.
    JSON keys: those of `baton jobs show`, dry_run effects
      report: to start name dry_run applied known unreadable others places withheld withheld_places,
        unauthenticated older unauthenticated_places if events were refused
    With --wait, the last line is the result.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli.client import control

    store, begin, per_second = parse_store(to), parse_start(start), parse_rate(rate)
    with control(options) as router:
        # If the log no longer has the start, fail before a job exists.
        request = events_pb2.LookUpEventsRequest(start=begin, name=name)
        events = router.call("LookUpEvents", request).events
    dry_run = "yes" if options.dry_run else "no"
    arguments = {"to": store, "start": begin, "name": name, "dry_run": dry_run}
    if accept_unsigned:
        arguments["accept_unsigned"] = "yes"
    new = NewJob("replay", arguments, per_second)
    if options.dry_run:
        _preview(options, new)
        return
    pace = f"at most {plain(per_second)} events/s" if per_second else "as fast as the live traffic allows"
    which = f" of {name}" if name else ""
    effects = [
        f"{events} events from {begin} on are read, {pace}",
        f"{store} applies the events{which} that are newer than its rows",
    ]
    if accept_unsigned:
        effects.append("events without a right code count, too, if they are older than the check of codes")
    run_job(options, new, effects, wait=wait)


def _preview(options: Starting, new: NewJob) -> None:
    """Run the dry run, itself a job, and show its result."""
    from services.router.cli import show
    from services.router.cli.client import control

    with control(options) as router:
        view = follow(router, options, router.call("StartJob", new.request(options)).job.id)
    if options.json:
        effects = [f"{view['note']}: of {view['done']} events"]
        show.print_json({**view, "dry_run": True, "effects": effects})
    else:
        show.show(f"{view['note']}: of {view['done']} events. No record was changed.")

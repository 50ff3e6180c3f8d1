"""`baton events`: events of the log, and parked events, which a store could not apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.inputs import parse_position, parse_start, parse_store
from services.router.cli.options import Changing, Common, Revealing, Starting, agree, command

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli.client import Control

View = dict[str, Any]

START_HELP = "Start: start (the log's beginning), a time (10:00, UTC), or partition/offset (3/1200)."
NAME_HELP = "Only events of this record: sandboxes/x."
_RETRIED = 1000

Name = Annotated[str, typer.Option("--name", metavar="NAME", help=NAME_HELP)]
StoreOption = Annotated[str, typer.Option("--store", metavar="STORE", help="A (simple_mcp) or B (service_layer).")]


def register(app: typer.Typer) -> None:
    events = typer.Typer(
        help="Events of the log, and parked events, which a store could not apply.", no_args_is_help=True
    )
    command(events, "tail", Common)(tail)
    command(events, "show", Revealing)(show_events)
    command(events, "parked", Common)(parked)
    command(events, "retry", Changing)(retry)
    command(events, "drop", Changing)(drop)
    command(events, "restart", Starting)(restart)
    app.add_typer(events, name="events")


def tail(
    options: Common,
    start: Annotated[str, typer.Option("--from", metavar="START", help=START_HELP)] = "",
    name: Name = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="Number of events, the last ones.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until interrupted.")] = False,
) -> None:
    """Show the last events of the log, or those from a start on.

    \b
    JSON, one object a line: position time key type bytes version owner origin
      live schema_version made_time served trouble content code code_trouble
    A heartbeat has no version. trouble: why an event cannot be read.
    code: NONE, RIGHT, WRONG, or UNCHECKED if this router has no keys.
    """
    question = {"start": parse_start(start) if start else "", "name": name, "limit": limit, "follow": follow}
    _print(options, question)


def show_events(
    options: Revealing,
    event: Annotated[str, typer.Argument(metavar="POSITION|NAME", help="3/1200, or sandboxes/x.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=100, help="A record's last N events.")] = 20,
) -> None:
    """Show one event of the log with its content, or those of one record.

    \b
    JSON, one object a line: the keys of `baton events tail`, and content:
      the record as JSON, null if its schema version is not known here
    Secrets are *** unless --reveal is given.
    """
    if event.replace("/", "", 1).isdecimal():
        parse_position(event)
        question: dict[str, Any] = {"start": event, "limit": 1, "content": True}
    else:
        question = {"name": event, "limit": limit, "content": True}
    if not _print(options, question | options.question):
        raise CommandFailed(f"the log holds no event {event}{_form_of_names(options, event)}")


def _form_of_names(options: Common, name: str) -> str:
    """Explain the form of record names if this is not one; else ""."""
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control

    if name.replace("/", "", 1).isdecimal():
        return ""
    try:
        with control(options) as router:
            router.call("Explain", pb.ExplainRequest(key=name, operation="get"))
    except CommandFailed as error:
        return f"; {error}" if error.code is Exit.USAGE else ""
    return ""


def parked(
    options: Common,
    store: StoreOption = "",
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, max=1000, help="At most N of each store, the oldest first.")
    ] = 200,
) -> None:
    """List the events that a store could not apply, with the reason.

    \b
    JSON keys: parked: list of position {ParkedEvent}
      troubles: errors of stores that do not answer
    Stores retry them about every 30 s. Exits with 1 if a store does not
    answer.
    """
    from services.router.cli import show
    from services.router.cli.client import control

    only = parse_store(store) if store else ""
    with control(options) as router:
        views, troubles = _parked(router, only, limit)
    if options.json:
        show.print_json({"parked": views, "troubles": troubles})
    elif views:
        table = show.table_of("store", "position", "record", "bytes", "reason")
        for view in views:
            table.add_row(view["store"], view["position"], view["key"], str(view["bytes"]), view["reason"])
        show.show(table)
    elif not troubles:
        show.show("no event is parked")
    if troubles:
        raise CommandFailed("; ".join(troubles))


def retry(
    options: Changing,
    position: Annotated[str, typer.Argument(metavar="[POSITION]", help="Partition/offset; or --all.")] = "",
    store: StoreOption = "",
    every: Annotated[bool, typer.Option("--all", help="All parked events, of --store or of both stores.")] = False,
) -> None:
    """Retry parked events now.

    \b
    JSON keys: retried: list of store position applied reason; dry_run effects
    reason: why it still cannot be applied; then the exit code is 1.
    """
    from services.router.cli import show
    from services.router.cli.client import control

    if bool(position) == every or (position and not store):
        raise CommandFailed("name one event by --store and POSITION, or give --all", Exit.USAGE)
    only = parse_store(store) if store else ""
    with control(options) as router:
        if every:
            chosen = [(view["store"], *parse_position(view["position"])) for view in _parked(router, only, _RETRIED)[0]]
        else:
            chosen = [(only, *parse_position(position))]
        effects = [f"{at}: event {partition}/{offset} is retried" for at, partition, offset in chosen]
        agreed = agree(options, effects or ["no event is parked"])
        retried = [_retry(router, *one) for one in chosen] if agreed else []
    left = sum(bool(one["reason"]) for one in retried)
    if options.json:
        show.print_json({"retried": retried, **agreed.view})
    else:
        for one in retried:
            outcome = one["reason"] or ("applied" if one["applied"] else "the store had this version or a later one")
            show.show(f"{one['store']} {one['position']}: {outcome}")
    if left:
        raise CommandFailed(f"{left} of {len(retried)} still cannot be applied")


def drop(
    options: Changing,
    position: Annotated[str, typer.Argument(metavar="[POSITION]", help="Partition/offset.")] = "",
    store: StoreOption = "",
    unauthenticated: Annotated[
        bool, typer.Option("--unauthenticated", help="All events of the store without a right code.")
    ] = False,
) -> None:
    """Drop a parked event for good, without applying it. Needs --reason.

    \b
    JSON keys: position {ParkedEvent} count dry_run effects
    The store lacks this version of the record until a later one, a
    reconcile or a backfill brings it. The journal keeps the reason.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli import show
    from services.router.cli.client import control

    if bool(position) == unauthenticated:
        raise CommandFailed("name one event by POSITION, or give --unauthenticated", Exit.USAGE)
    at, (partition, offset) = parse_store(store), (0, 0) if unauthenticated else parse_position(position)
    if not options.reason.strip():
        raise CommandFailed("--reason is required: the reason for the drop; the journal keeps it", Exit.USAGE)
    with control(options) as router:
        view: View = {}
        what = "the parked events without a right code: they are" if unauthenticated else f"event {position}: it is"
        agreed = agree(options, [f"{at} never applies {what} dropped for good"])
        if agreed:
            request = events_pb2.DropParkedRequest(
                actor=options.who, reason=options.reason, store=_number(at), partition=partition, offset=offset
            )
            request.unauthenticated = unauthenticated
            answer = router.call("DropParked", request)
            view = {**({} if unauthenticated else _parked_view(answer.dropped)), "count": answer.count}
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        what = f"{view['count']} events" if unauthenticated else f"{position}, its record: {view['key'] or 'none'}"
        show.show(f"{at}: dropped {what}")


def restart(
    options: Starting,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has copied the records.")] = False,
) -> None:
    """Continue with the current event log after the former one was replaced. Needs --reason.

    \b
    JSON keys: job skipped, dry_run effects
    skipped: events of the log that no store reads; the job copies their
    records. First try to bring the former log back: then the feeds resume
    by themselves.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli import show
    from services.router.cli.client import control

    if not options.reason.strip():
        raise CommandFailed("--reason is required: why the log was replaced; the journal keeps it", Exit.USAGE)
    effects = [
        "both feeds continue at the current end of the log; earlier events in it are never read",
        "a reconcile job copies the changes that the feeds have missed, from the owner to the other store;"
        " until it has finished, baton seize and recover are refused",
    ]
    with control(options) as router:
        view: View = {}
        agreed = agree(options, effects)
        if agreed:
            request = events_pb2.RestartEventsRequest(actor=options.who, reason=options.reason)
            answer = router.call("RestartEvents", request)
            view = {"job": answer.job, "skipped": answer.skipped}
            if wait:
                from services.router.cli.jobs import follow

                follow(router, options, answer.job)
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        show.show(f"the feeds continue after {view['skipped']} events; {view['job']} copies the records: baton jobs")


def _retry(router: Control, store: str, partition: int, offset: int) -> View:
    from libs.pb.baton.control.v1 import events_pb2

    request = events_pb2.RetryParkedRequest(store=_number(store), partition=partition, offset=offset)
    answer = router.call("RetryParked", request)
    return {"store": store, "position": f"{partition}/{offset}", "applied": answer.applied, "reason": answer.reason}


def _parked(router: Control, only: str, limit: int) -> tuple[list[View], list[str]]:
    from libs.pb.baton.control.v1 import events_pb2

    answer = router.call("ListParked", events_pb2.ListParkedRequest(limit=limit))
    views = [_parked_view(event) for event in answer.events]
    return [view for view in views if view["store"] == (only or view["store"])], list(answer.troubles)


def _parked_view(event: events_pb2.ParkedEvent) -> View:
    from services.router.cli.views import view_of

    return {"position": f"{event.partition}/{event.offset}", **view_of(event)}


def _number(store: str) -> Any:
    from libs.ownership.model import Store
    from libs.ownership.wire import STORE_NUMBERS

    return STORE_NUMBERS[Store(store)]


def _print(options: Common, question: dict[str, Any]) -> int:
    """Each event as it comes. Returns how many there were."""
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli import show, show_events
    from services.router.cli.client import control

    count = 0
    with control(options) as router:
        for answer in router.stream("ReadEvents", events_pb2.ReadEventsRequest(**question)):
            count += 1
            view = show_events.event_view(answer.event)
            if options.json:
                show.print_json(view)
            else:
                show.show(show_events.event_screen(view) if question.get("content") else show_events.event_line(view))
    return count

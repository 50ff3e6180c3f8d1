"""Commands for the log's events, and for those that a store could not apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.router.cli.inputs import parse_place, parse_start, parse_store
from services.router.cli.options import Changing, CommandFailed, Common, Exit, agree, command

if TYPE_CHECKING:
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli.client import Control

View = dict[str, Any]

START_HELP = "Where to begin: start, a time (10:00, UTC), or partition/offset (3/1200)."
NAME_HELP = "Only of this record: sandboxes/x."
_RETRIED = 1000

Name = Annotated[str, typer.Option("--name", metavar="NAME", help=NAME_HELP)]
StoreOption = Annotated[str, typer.Option("--store", metavar="STORE", help="A (simple_mcp) or B (service_layer).")]
Place = Annotated[str, typer.Argument(metavar="PLACE", help="Partition/offset, as `baton events parked` lists it.")]


def register(app: typer.Typer) -> None:
    events = typer.Typer(help="The log's events, and those that a store could not apply.", no_args_is_help=True)
    command(events, "tail", Common)(tail)
    command(events, "show", Common)(show_events)
    command(events, "parked", Common)(parked)
    command(events, "retry", Changing)(retry)
    command(events, "drop", Changing)(drop)
    command(events, "restart", Changing)(restart)
    app.add_typer(events, name="events")


def tail(
    options: Common,
    start: Annotated[str, typer.Option("--from", metavar="START", help=START_HELP)] = "",
    name: Name = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many of those there are.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then new ones, until interrupted.")] = False,
) -> None:
    """Show the last events of the log, or those from somewhere on.

    \b
    JSON, one object a line: place time key type bytes version owner origin
      live schema_version made_time served trouble content
    A heartbeat has no version; trouble says why an event cannot be read.
    """
    question = {"start": parse_start(start) if start else "", "name": name, "limit": limit, "follow": follow}
    _print(options, question)


def show_events(
    options: Common,
    what: Annotated[str, typer.Argument(metavar="PLACE|NAME", help="3/1200, or sandboxes/x.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=100, help="How many of a record, the last.")] = 20,
) -> None:
    """Show one event of the log with its content, or those of one record.

    \b
    JSON, one object a line: as `baton events tail` has it; content: what
      the record holds, null of a schema version that is not known here
    """
    if what.replace("/", "", 1).isdecimal():
        parse_place(what)
        question: dict[str, Any] = {"start": what, "limit": 1, "content": True}
    else:
        question = {"name": what, "limit": limit, "content": True}
    if not _print(options, question):
        raise CommandFailed(f"the log holds no event {what}{_form_of_names(options, what)}")


def _form_of_names(options: Common, what: str) -> str:
    """How records are named, where this is no record's name; else ""."""
    from libs.pb.baton.control.v1 import control_pb2 as pb
    from services.router.cli.client import control

    if what.replace("/", "", 1).isdecimal():
        return ""
    try:
        with control(options) as router:
            router.call("Explain", pb.ExplainRequest(key=what, operation="get"))
    except CommandFailed as error:
        return f"; {error}" if error.code is Exit.USAGE else ""
    return ""


def parked(
    options: Common,
    store: StoreOption = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="Of each store, the oldest.")] = 200,
) -> None:
    """List the events that a store could not apply, with the reason.

    \b
    JSON keys: parked: list of store place key reason bytes
      troubles: of stores that cannot be asked
    Stores try them again about every 30 s. Exits with 1 when a store
    cannot be asked.
    """
    from services.router.cli import show
    from services.router.cli.client import control

    only = parse_store(store) if store else ""
    with control(options) as router:
        views, troubles = _parked(router, only, limit)
    if options.json:
        show.print_json({"parked": views, "troubles": troubles})
    elif views:
        table = show.table_of("store", "place", "record", "bytes", "reason")
        for view in views:
            table.add_row(view["store"], view["place"], view["key"], str(view["bytes"]), view["reason"])
        show.show(table)
    elif not troubles:
        show.show("no event is parked")
    if troubles:
        raise CommandFailed("; ".join(troubles))


def retry(
    options: Changing,
    place: Annotated[str, typer.Argument(metavar="[PLACE]", help="Partition/offset; or --all.")] = "",
    store: StoreOption = "",
    every: Annotated[bool, typer.Option("--all", help="All that are parked, at this store or at both.")] = False,
) -> None:
    """Try parked events again, now.

    \b
    JSON keys: retried: list of store place applied reason; dry_run effects
    reason: why it still cannot be applied; then the exit code is 1.
    """
    from services.router.cli import show
    from services.router.cli.client import control

    if bool(place) == every or (place and not store):
        raise CommandFailed("name one event by --store and PLACE, or give --all", Exit.USAGE)
    only = parse_store(store) if store else ""
    with control(options) as router:
        if every:
            places = [(view["store"], *parse_place(view["place"])) for view in _parked(router, only, _RETRIED)[0]]
        else:
            places = [(only, *parse_place(place))]
        effects = [f"{at}: event {partition}/{offset} is tried again" for at, partition, offset in places]
        agreed = agree(options, effects or ["nothing: no event is parked"])
        retried = [_retry(router, *one) for one in places] if agreed else []
    left = sum(bool(one["reason"]) for one in retried)
    if options.json:
        show.print_json({"retried": retried, **agreed.view})
    else:
        for one in retried:
            outcome = one["reason"] or ("applied" if one["applied"] else "the store had it, or a later one")
            show.show(f"{one['store']} {one['place']}: {outcome}")
    if left:
        raise CommandFailed(f"{left} of {len(retried)} still cannot be applied")


def drop(options: Changing, place: Place, store: StoreOption = "") -> None:
    """Take a parked event off the list for good, without applying it. Needs --reason.

    \b
    JSON keys: store place key reason bytes, dry_run effects
    The store goes without this version of the record until a later one, a
    reconcile or a backfill brings it. The journal keeps the reason.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli import show
    from services.router.cli.client import control

    at, (partition, offset) = parse_store(store), parse_place(place)
    if not options.reason.strip():
        raise CommandFailed("--reason is needed: why it is dropped; the journal keeps it", Exit.USAGE)
    with control(options) as router:
        view: View = {}
        agreed = agree(options, [f"{at} never applies event {place}: it is taken off the list, for good"])
        if agreed:
            request = events_pb2.DropParkedRequest(
                actor=options.who, reason=options.reason, store=_number(at), partition=partition, offset=offset
            )
            view = _parked_view(router.call("DropParked", request).dropped)
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        show.show(f"{at} {place}: dropped; it was of {view['key'] or 'no record'}")


def restart(options: Changing) -> None:
    """Go on with another event log, after the former one was replaced. Needs --reason.

    \b
    JSON keys: job skipped, dry_run effects
    skipped: events of the log that no store reads; what they hold is copied.
    First try to bring the former log back: then the feeds go on by themselves.
    """
    from libs.pb.baton.control.v1 import events_pb2
    from services.router.cli import show
    from services.router.cli.client import control

    if not options.reason.strip():
        raise CommandFailed("--reason is needed: why the log was replaced; the journal keeps it", Exit.USAGE)
    effects = [
        "both feeds go on at the end of the log as it is now: what is before it is never read",
        "a reconcile job copies what the feeds have missed, from the owner's store to the other one;"
        " until it has finished, baton seize and recover are refused",
    ]
    with control(options) as router:
        view: View = {}
        agreed = agree(options, effects)
        if agreed:
            request = events_pb2.RestartEventsRequest(actor=options.who, reason=options.reason)
            answer = router.call("RestartEvents", request)
            view = {"job": answer.job, "skipped": answer.skipped}
    if options.json:
        show.print_json({**view, **agreed.view})
    elif agreed:
        show.show(f"the feeds go on behind {view['skipped']} events; {view['job']} copies the records: baton jobs")


def _retry(router: Control, store: str, partition: int, offset: int) -> View:
    from libs.pb.baton.control.v1 import events_pb2

    request = events_pb2.RetryParkedRequest(store=_number(store), partition=partition, offset=offset)
    answer = router.call("RetryParked", request)
    return {"store": store, "place": f"{partition}/{offset}", "applied": answer.applied, "reason": answer.reason}


def _parked(router: Control, only: str, limit: int) -> tuple[list[View], list[str]]:
    from libs.pb.baton.control.v1 import events_pb2

    answer = router.call("ListParked", events_pb2.ListParkedRequest(limit=limit))
    views = [_parked_view(event) for event in answer.events]
    return [view for view in views if view["store"] == (only or view["store"])], list(answer.troubles)


def _parked_view(event: events_pb2.ParkedEvent) -> View:
    from services.router.cli.views import view_of

    return {"place": f"{event.partition}/{event.offset}", **view_of(event)}


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

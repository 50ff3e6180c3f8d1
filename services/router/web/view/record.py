"""One record: both rows, its owner, the target of calls, and its events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import events_pb2, records_pb2
from services.router.web.view.words import NOT_KNOWN, count, stamp, store, version


@dataclass(frozen=True, slots=True)
class RowView:
    store: str
    state: str
    version: str
    owner: str
    size: str
    content: str
    trouble: str


@dataclass(frozen=True, slots=True)
class EventView:
    position: str
    time: str
    version: str
    owner: str
    deleted: bool
    trouble: str


@dataclass(frozen=True, slots=True)
class Route:
    target: str
    because: str
    then: str
    bucket: str


def route(found: pb.ExplainResponse) -> Route:
    bucket = str(found.bucket) if found.HasField("bucket") else ""
    return Route(store(found.target), found.because, found.then, bucket)


def rows(found: Sequence[records_pb2.RecordAt]) -> list[RowView]:
    return [
        RowView(
            store(one.store),
            _state(one),
            version(one.version) if one.HasField("version") else NOT_KNOWN,
            _owner(one),
            f"{count(one.bytes)} bytes" if one.exists else NOT_KNOWN,
            one.content,
            one.trouble or one.corrupt,
        )
        for one in found
    ]


def explained(found: pb.ExplainResponse) -> list[RowView]:
    """The rows as a viewer sees them: without content."""
    return [
        RowView(
            store(one.store),
            "unknown" if one.trouble else "no row" if not one.exists else "live" if one.live else "deleted",
            version(one.version) if one.HasField("version") else NOT_KNOWN,
            _owner(one),
            NOT_KNOWN,
            "",
            one.trouble,
        )
        for one in found.rows
    ]


def _owner(one: records_pb2.RecordAt | pb.ExplainResponse.Row) -> str:
    """Without a row it is the owner of the bucket."""
    return NOT_KNOWN if one.trouble else store(one.owner) or "on its way"


def _state(one: records_pb2.RecordAt) -> str:
    if one.trouble:
        return "unknown"
    if not one.exists:
        return "no row"
    if one.corrupt:
        return "corrupt"
    return "live" if one.live else "deleted"


def events(found: Sequence[events_pb2.ReadEventsResponse]) -> list[EventView]:
    """Newest first."""
    views = [_event(one.event) for one in found]
    return views[::-1]


def _event(one: events_pb2.LogEvent) -> EventView:
    has = one.HasField("record")
    return EventView(
        f"{one.partition}/{one.offset}",
        stamp(one.time),
        version(one.record.version) if has else NOT_KNOWN,
        store(one.record.owner) if has else NOT_KNOWN,
        has and not one.record.live,
        one.trouble or one.code_trouble,
    )

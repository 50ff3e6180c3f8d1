"""Events of the log for an operator: the last ones, those from a start on, and new ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from libs.contract.descriptors import Contract
from libs.contract.secrets import redacted
from libs.errors import InvalidField
from libs.eventlog.cloudevents import HeadersInvalid, read_headers, traceparent_of
from libs.eventlog.codes import HEADER, Codes
from libs.eventlog.port import Event, EventLog, LogUnavailable, OffsetGone, Stored
from libs.ownership.limits import MAX_KEY_BYTES
from libs.ownership.wire import UnreadableRecord, read_bulk, read_event
from libs.pb.baton.record.v1 import record_pb2
from libs.telemetry.trace_context import trace_id_of
from services.router.core.retention import Start, parse_start
from services.router.flows.feed.retention import BeginningGone, Window, look_up

MAX_EVENTS = 1000
MAX_CONTENTS = 100
"""Events with content that are held in memory to be sorted by time."""
DEFAULT_EVENTS = 20
POLL_EVENTS = 500
POLL_SECONDS = 1.0
SILENT_POLLS = 5
"""Empty polls in a row, while an event is known to exist, after which the log counts as failed."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query for events."""

    start: str = ""
    """The start in the form of `services.router.core.retention`; "" for the last events."""
    name: str = ""
    limit: int = 0
    """Maximum number of existing events. 0: all from `start` on, or the last DEFAULT_EVENTS."""
    follow: bool = False
    """Go on with new events until cancelled."""
    content: bool = False
    reveal: bool = False
    """Show secrets of the content."""

    def check(self) -> None:
        """Raises InvalidField."""
        check_name(self.name)
        most = MAX_CONTENTS if self.content else MAX_EVENTS
        if not 0 <= self.limit <= most:
            raise InvalidField("limit", self.limit, f"1 to {most}, or 0 for all from a start on")
        if self.reveal and not self.content:
            raise InvalidField("reveal", self.reveal, "a read with content: nothing else has secrets")

    @property
    def count(self) -> int:
        return self.limit or (0 if self.start else DEFAULT_EVENTS)


class EventCode(Enum):
    """State of an event's authentication code."""

    NONE = "none"
    RIGHT = "right"
    WRONG = "wrong"
    UNCHECKED = "unchecked"
    """This router has no keys."""


@dataclass(frozen=True, slots=True)
class ReadableEvent:
    """An event in a readable form."""

    partition: int
    offset: int
    time_seconds: float
    key: str
    type: str
    bytes: int
    record: record_pb2.Record | None
    """Without payload, and without the answers of served requests."""
    trouble: str
    content: str
    code: EventCode
    code_trouble: str
    trace_id: str
    """Trace of the write that made the event; "" if it was not traced."""


class ContentOf(Protocol):
    """Shows a record's content as JSON."""

    def __call__(self, record: record_pb2.Record, *, reveal: bool = False) -> str: ...


class LogEvents:
    """A reader of the log. It does not change any feed's position."""

    def __init__(self, log: EventLog, contract: Contract, codes: Codes | None = None) -> None:
        """`codes`: None if this router has no keys."""
        self._log = log
        self._codes = codes
        self._resource = resource_of(contract)
        self._newest = contract.schemas.newest

    async def look_up(self, start: str, name: str) -> Window:
        """Return the window that a query would read. Raises InvalidField, BeginningGone, LogUnavailable."""
        check_name(name)
        return await look_up(self._log, parse_start(start), name)

    async def read(self, question: Question) -> AsyncGenerator[ReadableEvent, None]:
        """Yield existing events, sorted by time if there is a limit, else by partition; then new ones.

        The order within a partition is kept. Raises as `look_up`.
        """
        question.check()
        start = parse_start(question.start) if question.start else Start()
        window = await look_up(self._log, start, question.name)
        if question.count:
            for seen in await self._some(window, question):
                yield seen
        else:
            async for stored in self._there(window.ranges, question.name):
                yield self._see(stored, question)
        if question.follow:
            ends = {partition: end for partition, (_, end) in window.ranges.items()}
            async for stored in self._follow(ends, question.name):
                yield self._see(stored, question)

    async def _some(self, window: Window, question: Question) -> Sequence[ReadableEvent]:
        """Return the first events of the window, or without a start the last ones."""
        count, first = question.count, bool(question.start)
        ranges = window.ranges
        if not question.name:
            ranges = {part: _clipped(span, count, first=first) for part, span in ranges.items()}
        kept: list[ReadableEvent] = []
        async for stored in self._there(ranges, question.name):
            kept.append(self._see(stored, question))
            if len(kept) >= 2 * count:
                kept = _by_time(kept, count, first=first)
            if question.name and first and len(kept) >= count:
                break
        return _by_time(kept, count, first=first)

    async def _there(self, ranges: Mapping[int, tuple[int, int]], name: str) -> AsyncGenerator[Stored, None]:
        left = {partition: (at, end) for partition, (at, end) in ranges.items() if at < end}
        if not left:
            return
        silent = 0
        try:
            async with self._log.reader({partition: at for partition, (at, _) in left.items()}) as reader:
                while left:
                    found = await reader.poll(POLL_EVENTS, POLL_SECONDS)
                    silent = 0 if found else silent + 1
                    if silent == SILENT_POLLS:
                        raise LogUnavailable(f"no event in partitions {sorted(left)}, where some are known to be")
                    for stored in found:
                        end = left.get(stored.partition, (0, 0))[1]
                        if stored.offset < end and name in ("", stored.event.key):
                            yield stored
                            # A poll may return a hundred bulk releases, each of which takes a millisecond to check.
                            await asyncio.sleep(0)
                        if stored.offset + 1 >= end:
                            left.pop(stored.partition, None)
        except OffsetGone as error:
            raise BeginningGone(error.message) from None

    async def _follow(self, positions: Mapping[int, int], name: str) -> AsyncGenerator[Stored, None]:
        async with self._log.reader(positions) as reader:
            while True:
                for stored in await reader.poll(POLL_EVENTS, POLL_SECONDS):
                    if name in ("", stored.event.key):
                        yield stored

    def _see(self, stored: Stored, question: Question) -> ReadableEvent:
        event = stored.event
        try:
            kind = read_headers(event.headers).type
        except HeadersInvalid:
            kind = ""
        record, trouble, shown = None, "", ""
        if event.key or not kind:
            try:
                record = _record_of(event)
            except UnreadableRecord as error:
                trouble = error.message
            if record is not None:
                shown = self.content_of(record, reveal=question.reveal) if question.content else ""
                _strip(record)
        place = stored.partition, stored.offset, stored.time
        code = self._code(event)
        trace = trace_id_of(traceparent_of(event.headers))
        return ReadableEvent(*place, event.key, kind, len(event.value), record, trouble, shown, *code, trace)

    def _code(self, event: Event) -> tuple[EventCode, str]:
        """The state of the event's code, and why it is wrong."""
        if all(name.lower() != HEADER for name, _ in event.headers):
            return EventCode.NONE, ""
        if self._codes is None:
            return EventCode.UNCHECKED, ""
        why = self._codes.why_wrong(event)
        return (EventCode.WRONG, why) if why else (EventCode.RIGHT, "")

    def content_of(self, record: record_pb2.Record, *, reveal: bool = False) -> str:
        """Return a record's payload as JSON, without secrets unless `reveal`; "" if this router cannot decode it."""
        if (
            self._resource is None
            or not record.payload
            or record.schema_version != (self._newest or record.schema_version)
        ):
            return ""
        try:
            message = self._resource.FromString(record.payload)
        except DecodeError:
            return ""
        shown = message if reveal else redacted(message)
        return json_format.MessageToJson(shown, preserving_proto_field_name=True, indent=None)


def check_name(name: str) -> None:
    """Accept a record's name, or "" for any record. Raises InvalidField."""
    if len(name.encode()) > MAX_KEY_BYTES or "\0" in name:
        raise InvalidField("name", name, f"a record's name, at most {MAX_KEY_BYTES} bytes")


def resource_of(contract: Contract) -> type[Message] | None:
    """Return the resource type of the contract's lists; None if it has no list."""
    for method in contract.methods.values():
        if method.shape is not None:
            item = method.reply_class()
            return type(getattr(item, method.shape.items).add())
    return None


def _record_of(event: Event) -> record_pb2.Record | None:
    """Return the event's record; None for a bulk release, which has none. Raises UnreadableRecord."""
    if read_bulk(event.key, event.value) is not None:
        return None
    read_event(event.key, event.value)
    return record_pb2.Record.FromString(event.value)


def _strip(record: record_pb2.Record) -> None:
    record.ClearField("payload")
    for served in record.served:
        served.ClearField("answer")


def _clipped(span: tuple[int, int], count: int, *, first: bool) -> tuple[int, int]:
    start, end = span
    return (start, min(end, start + count)) if first else (max(start, end - count), end)


def _by_time(kept: list[ReadableEvent], count: int, *, first: bool) -> list[ReadableEvent]:
    ordered = sorted(kept, key=lambda seen: (seen.time_seconds, seen.partition, seen.offset))
    return ordered[:count] if first else ordered[-count:]

"""Reading a part of the log again and giving its events to a store, beside that store's own feed.

Safe at any time and as often as one likes: a store keeps a record only if its version is higher, whoever brings it. So
a replay mends a store that has lost rows, and changes nothing at one that has not. The positions of the stores' feeds
stay as they are: it has readers of its own.

When a router dies in the middle of a step, what that step had given counts as known when it is given again: what was
read is counted right, how much of it was new may be told as less.

What is to be read is fixed when the job begins: later events come to the store by its feed as ever.

With `dry_run` nothing is given to the store; instead its versions are compared with those of the events, and counted as
if they had been. There an event that is in the log twice may be counted twice, if the copies are far apart.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from google.protobuf.message import DecodeError

from libs.clock import Clock
from libs.contract.descriptors import length_delimited, varint
from libs.errors import BatonError, InvalidField
from libs.eventlog.port import EventLog, LogReader, LogUnavailable, OffsetGone, Stored
from libs.ownership.limits import MAX_KEY_BYTES
from libs.ownership.model import Store
from libs.ownership.wire import UnreadableRecord, read_event
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc.tasks import all_or_none
from services.router.core.logstart import parse_start
from services.router.flows.jobs import JobFailed, Position, Step
from services.router.flows.logwindow import BeginningGone, look_up
from services.router.flows.stores import Refused, StoreClient, Stores

NAME = "replay"

POLL_EVENTS = 2000
"""Read and given to the store at once."""
WRITERS = 4
"""Calls at once. Events of one record go by the same one."""
CALL_EVENTS = 1000
CALL_BYTES = 2 * 1024 * 1024
"""As much as one call of a store may have."""
STEP_SECONDS = 1.0
"""After so long a step reads no further: it is longer than other jobs' since opening a reader takes a while."""
POLL_SECONDS = 5.0
CALL_SECONDS = 10.0
KEPT_PLACES = 20
"""Of events that cannot be read, in the report."""

_RECORD = length_delimited(pb.AdoptRecordsRequest.DESCRIPTOR.fields_by_name["records"].number)


@dataclass(slots=True)
class Counts:
    """Of events: read = applied + known + unreadable + others."""

    applied: int = 0
    known: int = 0
    """The store had this version of the record, or a higher one."""
    unreadable: int = 0
    others: int = 0
    """Of other records than the one that was asked for; heartbeats."""
    places: list[str] = field(default_factory=list)
    """Of the first unreadable ones."""

    def cannot_read(self, stored: Stored) -> None:
        self.unreadable += 1
        if len(self.places) < KEPT_PLACES:
            self.places.append(f"{stored.partition}/{stored.offset}")

    def said(self, *, dry_run: bool) -> str:
        """In words."""
        applied, ignored = ("would apply", "ignore") if dry_run else ("applied", "ignored")
        text = f"{applied} {self.applied}, {ignored} {self.known} as known"
        return f"{text}; {self.unreadable} cannot be read" if self.unreadable else text


@dataclass(slots=True)
class _Journey:
    """A replay's checkpoint."""

    ranges: dict[int, tuple[int, int]]
    """By partition the next offset, and the one at which to end."""
    events: int
    counts: Counts

    @property
    def left(self) -> dict[int, tuple[int, int]]:
        """The ranges of which something is to be read."""
        return {partition: span for partition, span in self.ranges.items() if span[0] < span[1]}

    @property
    def read(self) -> int:
        """A number that rises by one with each event."""
        return sum(position for position, _ in self.ranges.values())

    def move(self, found: Sequence[Stored]) -> list[Stored]:
        """Behind these events. Returns them without those that have come since the job began."""
        wanted = [stored for stored in found if stored.offset < self.ranges[stored.partition][1]]
        for partition, offset, *_ in wanted:
            self.ranges[partition] = offset + 1, self.ranges[partition][1]
        return wanted

    def encode(self) -> bytes:
        return json.dumps([list(self.ranges.items()), self.events, asdict(self.counts)]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> _Journey:
        ranges, events, counts = json.loads(checkpoint)
        return cls({partition: (at, end) for partition, (at, end) in ranges}, events, Counts(**counts))


class Replay:
    """A `JobKind`. `to`: A or B. `start`: where to begin (`services.router.core.logstart`). `name`: only this record.
    `dry_run`: "yes" only looks."""

    name = NAME
    unit = "events"

    def __init__(self, stores: Stores, log: EventLog, clock: Clock) -> None:
        self._stores = stores
        self._log = log
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        unknown = sorted(set(arguments) - {"to", "start", "name", "dry_run"})
        if unknown:
            raise InvalidField("arguments", unknown[0], "to, start, name and dry_run")
        to = arguments.get("to", "")
        if to not in {store.value for store in Store}:
            raise InvalidField("to", to, "A or B")
        parse_start(arguments.get("start", ""))
        check_name(arguments.get("name", ""))
        if arguments.get("dry_run", "no") not in ("yes", "no"):
            raise InvalidField("dry_run", arguments["dry_run"], "yes or no")
        return f"{NAME} to {to}"

    async def step(self, at: Position) -> Step:
        """Raises what the stores' clients and the log raise; JobFailed when the log has dropped what comes next."""
        journey = _Journey.decode(at.checkpoint) if at.checkpoint else await self._begin(at.arguments)
        work = _Work(self._stores[Store(at.arguments["to"])], at.arguments, journey.counts)
        began = journey.read
        if journey.left:
            await self._travel(journey, work, at.limit)
        counts = journey.counts
        return Step(
            journey.encode(),
            journey.read - began,
            total=journey.events,
            note=counts.said(dry_run=work.dry_run),
            finished=not journey.left,
            report=json.dumps({**at.arguments, **asdict(counts)}),
        )

    async def _begin(self, arguments: Mapping[str, str]) -> _Journey:
        try:
            window = await look_up(self._log, parse_start(arguments["start"]), arguments.get("name", ""))
        except (BeginningGone, InvalidField) as error:
            raise JobFailed(error.message) from None
        return _Journey(dict(window.ranges), window.events, Counts())

    async def _travel(self, journey: _Journey, work: _Work, limit: int) -> None:
        """Up to so many events, for about STEP_SECONDS; the next ones are read while the last ones are given away."""
        until, last = self._clock.monotonic() + STEP_SECONDS, journey.read + limit

        async def read() -> list[Stored]:
            """[] at the end of the step."""
            while journey.left and journey.read < last:
                found = await _poll(reader, min(POLL_EVENTS, last - journey.read), journey)
                if wanted := journey.move(found):
                    return wanted
            return []

        try:
            async with self._log.reader({part: at for part, (at, _) in journey.left.items()}) as reader:
                found: list[Stored] | None = await read()
                while found:
                    if self._clock.monotonic() >= until:
                        await work.take(found)
                        break
                    found, _ = await all_or_none([read(), work.take(found)])
        except OffsetGone as error:
            raise JobFailed(f"retention was faster than this replay: {error.message}; begin anew, later") from None


async def _poll(reader: LogReader, limit: int, journey: _Journey) -> list[Stored]:
    found = await reader.poll(limit, POLL_SECONDS)
    if not found:
        places = ", ".join(f"{part}/{at}" for part, (at, _) in journey.left.items())
        raise LogUnavailable(f"no event at {places}, where one is known to be")
    return found


class _Work:
    """What one step does with the events."""

    def __init__(self, target: StoreClient, arguments: Mapping[str, str], counts: Counts) -> None:
        self._target = target
        self._name = arguments.get("name", "")
        self.dry_run = arguments.get("dry_run") == "yes"
        self._counts = counts

    async def take(self, found: Sequence[Stored]) -> None:
        wanted = [
            stored for stored in found if stored.event.key and stored.event.key == (self._name or stored.event.key)
        ]
        self._counts.others += len(found) - len(wanted)
        lots: list[list[Stored]] = [[] for _ in range(WRITERS)]
        for stored in wanted:
            lots[zlib.crc32(stored.event.key.encode()) % WRITERS].append(stored)
        await all_or_none([self._lot(lot) for lot in lots if lot])

    async def _lot(self, lot: list[Stored]) -> None:
        for some in _in_calls(lot):
            request = _request(some)
            if request is None:
                some = self._readable(some)
                request = _request(some)
            if request is not None and request.records:
                await (self._compare(request) if self.dry_run else self._apply(request, some))

    def _readable(self, some: list[Stored]) -> list[Stored]:
        good = []
        for stored in some:
            try:
                read_event(stored.event.key, stored.event.value)
            except UnreadableRecord:
                self._counts.cannot_read(stored)
            else:
                good.append(stored)
        return good

    async def _apply(self, request: pb.AdoptRecordsRequest, some: list[Stored]) -> None:
        target = self._target
        try:
            answer = await target.ask(target.replication.AdoptRecords, request, CALL_SECONDS)
        except Refused as refused:
            good = self._readable(some) if refused.reason == UnreadableRecord.reason else some
            if len(good) == len(some):
                raise
            again = _request(good)
            if again is not None and again.records:
                await self._apply(again, good)
            return
        self._counts.applied += answer.applied
        self._counts.known += len(some) - answer.applied

    async def _compare(self, request: pb.AdoptRecordsRequest) -> None:
        known = await self._versions(sorted({record.key for record in request.records}))
        for record in request.records:
            version = record.version.term, record.version.revision
            if version > known.get(record.key, (-1, 0)):
                known[record.key] = version
                self._counts.applied += 1
            else:
                self._counts.known += 1

    async def _versions(self, keys: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Of the store's rows; keys without a row are left out."""
        target, found, after = self._target, dict[str, tuple[int, int]](), ""
        while True:
            request = pb.LookAtRecordsRequest(keys=keys, after=after, limit=CALL_EVENTS)
            page = await target.ask(target.replication.LookAtRecords, request, CALL_SECONDS)
            found.update((row.key, (row.version.term, row.version.revision)) for row in page.looks)
            if not page.more:
                return found
            if not page.looks:
                raise NoProgress(f"{target.store} says that there are records after {after!r}, but sends none")
            after = page.looks[-1].key


class NoProgress(BatonError):
    """The replay does not come forward."""


def check_name(name: str) -> None:
    """Of a record; "" is any. Raises InvalidField."""
    if len(name.encode()) > MAX_KEY_BYTES or "\0" in name:
        raise InvalidField("name", name, f"a record's name, at most {MAX_KEY_BYTES} bytes")


def _in_calls(lot: list[Stored]) -> list[list[Stored]]:
    """Lots of at most CALL_EVENTS and CALL_BYTES, or of one event."""
    calls: list[list[Stored]] = []
    room = 0
    for stored in lot:
        size = len(stored.event.value)
        if not calls or size > room or len(calls[-1]) == CALL_EVENTS:
            calls.append([])
            room = CALL_BYTES
        calls[-1].append(stored)
        room -= size
    return calls


def _request(some: Sequence[Stored]) -> pb.AdoptRecordsRequest | None:
    """The events' records, put into a request as they are; None when one of them is no record of its key."""
    parts: list[bytes] = []
    for stored in some:
        value = stored.event.value
        parts += (_RECORD, varint(len(value)), value)
    try:
        request = pb.AdoptRecordsRequest.FromString(b"".join(parts))
    except DecodeError:
        return None
    fits = all(record.key == stored.event.key for record, stored in zip(request.records, some, strict=True))
    return request if fits else None

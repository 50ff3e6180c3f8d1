"""The job `replay`: reads a part of the log again and applies its events at a store, in addition to the store's feed.

A replay is safe at any time and any number of times. A store keeps a record only if its version is higher, and an event
alone never makes the store an owner (`services.router.core.replay`). So a replay restores rows that a store has lost,
and changes no other row. Both stores must answer. The replay has its own readers, so the positions of the feeds stay.

If a router dies within a step, the repeated step counts events that were applied before as known. The number of events
read is exact; the number applied may be too low.

The range to read is fixed when the job begins. Later events reach the store through its feed.

With `dry_run`, the job applies no event. It compares the store's versions with those of the events and counts them
accordingly. It may count an event that is in the log twice as two events if the copies are far apart.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.eventlog.codes import Codes
from libs.eventlog.port import EventLog, LogReader, LogUnavailable, OffsetGone, Stored
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import all_or_none
from services.router.core.retention import parse_start
from services.router.flows.feed.events import check_name
from services.router.flows.feed.retention import BeginningGone, look_up
from services.router.flows.jobs.kind import JobFailed, Position, Step
from services.router.flows.jobs.replay_counts import Counts
from services.router.flows.jobs.replay_writer import CodeCheck, ReplayWriter
from services.router.flows.stores import Away, StoreClient, Stores

NAME = "replay"
_FLAGS = ("dry_run", "accept_unsigned")

POLL_EVENTS = 2000
"""Maximum number of events that are read and applied at a time."""
STEP_SECONDS = 1.0
"""Time after which a step reads no more; longer than in other jobs, because opening a reader takes time."""
POLL_SECONDS = 5.0
CHECK_SECONDS = 5.0
READY_SECONDS = 1.5
"""Time after which a store that refuses connections counts as missing. A store that starts up answers sooner."""
AGAIN_SECONDS = 0.1


@dataclass(slots=True)
class _Progress:
    """A replay's checkpoint."""

    ranges: dict[int, tuple[int, int]]
    """Next offset and end offset of each partition."""
    events: int
    counts: Counts

    @property
    def left(self) -> dict[int, tuple[int, int]]:
        """The ranges that are not read to their end."""
        return {partition: span for partition, span in self.ranges.items() if span[0] < span[1]}

    @property
    def read(self) -> int:
        """Sum of the next offsets; it rises by one with each event."""
        return sum(position for position, _ in self.ranges.values())

    def move(self, found: Sequence[Stored]) -> list[Stored]:
        """Move behind these events. Returns those that are within the ranges."""
        wanted = [stored for stored in found if stored.offset < self.ranges[stored.partition][1]]
        for partition, offset, *_ in wanted:
            self.ranges[partition] = offset + 1, self.ranges[partition][1]
        return wanted

    def encode(self) -> bytes:
        return json.dumps([list(self.ranges.items()), self.events, self.counts.to_json()]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> _Progress:
        ranges, events, counts = json.loads(checkpoint)
        return cls({partition: (at, end) for partition, (at, end) in ranges}, events, Counts(**counts))


class StoreMissing(BatonError):
    """A replay needs both stores, or old events could give a record a second owner. Start or recover that store."""

    code = "FAILED_PRECONDITION"
    reason = "STORE_NOT_READY"


class KeysMissing(BatonError):
    """The store requires codes, and this router has no keys to check them. Set event_keys at all routers."""

    code = "FAILED_PRECONDITION"
    reason = "EVENT_KEYS_MISSING"


class Replay:
    """A `JobKind`. Arguments: `to`, A or B; `start`, the first event (`services.router.core.retention`); `name`, the
    only record to replay; `dry_run`, "yes" to change nothing; `accept_unsigned`, "yes" to apply events without a right
    code that were in the log before the store required codes."""

    name = NAME
    unit = "events"

    def __init__(self, stores: Stores, log: EventLog, clock: Clock, codes: Codes | None = None) -> None:
        """`codes`: None if this router has no keys."""
        self._codes = codes
        self._stores = stores
        self._log = log
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        unknown = sorted(set(arguments) - {"to", "start", "name", *_FLAGS})
        if unknown:
            raise InvalidField("arguments", unknown[0], "one of to, start, name, dry_run, accept_unsigned")
        to = arguments.get("to", "")
        if to not in {store.value for store in Store}:
            raise InvalidField("to", to, "A or B")
        parse_start(arguments.get("start", ""))
        check_name(arguments.get("name", ""))
        for flag in _FLAGS:
            if arguments.get(flag, "no") not in ("yes", "no"):
                raise InvalidField(flag, arguments[flag], "yes or no")
        return f"{NAME} to {to}"

    async def _status(self, client: StoreClient) -> pb.GetStatusResponse:
        """Raises StoreMissing."""
        until = self._clock.monotonic() + READY_SECONDS
        while True:
            try:
                answer: pb.GetStatusResponse = await client.ask(
                    client.replication.GetStatus, pb.GetStatusRequest(), CHECK_SECONDS
                )
                return answer
            except Away as error:
                if self._clock.monotonic() >= until:
                    raise StoreMissing(f"{error.message}: {StoreMissing.__doc__}") from None
            await asyncio.sleep(AGAIN_SECONDS)

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Raises StoreMissing, KeysMissing."""
        for client in self._stores.values():
            status = await self._status(client)
            if not status.serving:
                raise StoreMissing(f"store {client.store} does not serve ({status.reason}): {StoreMissing.__doc__}")
        await self._check(arguments)

    async def _check(self, arguments: Mapping[str, str]) -> CodeCheck | None:
        """None if the target requires no codes. Raises KeysMissing, StoreMissing."""
        feed = (await self._status(self._stores[Store(arguments["to"])])).feed
        if feed.event_auth != "require" and not feed.checked_from:
            return None
        if self._codes is None:
            raise KeysMissing
        return CodeCheck(self._codes, dict(feed.checked_from), arguments.get("accept_unsigned") == "yes")

    async def step(self, at: Position) -> Step:
        """Raises the errors of the stores and the log, and JobFailed if the log has dropped the next event."""
        journey = _Progress.decode(at.checkpoint) if at.checkpoint else await self._begin(at.arguments)
        # Checked at each step: a store may require codes from now on.
        work = ReplayWriter(self._stores, self._log, at.arguments, journey.counts, await self._check(at.arguments))
        began = journey.read
        if journey.left:
            await self._travel(journey, work, at.limit)
        counts = journey.counts
        return Step(
            journey.encode(),
            journey.read - began,
            total=journey.events,
            note=counts.summary(dry_run=work.dry_run),
            finished=not journey.left,
            report=json.dumps({**at.arguments, **counts.to_json()}),
        )

    async def _begin(self, arguments: Mapping[str, str]) -> _Progress:
        try:
            window = await look_up(self._log, parse_start(arguments["start"]), arguments.get("name", ""))
        except (BeginningGone, InvalidField) as error:
            raise JobFailed(error.message) from None
        return _Progress(dict(window.ranges), window.events, Counts())

    async def _travel(self, journey: _Progress, work: ReplayWriter, limit: int) -> None:
        """Replay up to `limit` events, for about STEP_SECONDS. Reads the next events while the last ones are
        applied."""
        until, last = self._clock.monotonic() + STEP_SECONDS, journey.read + limit

        async def read() -> list[Stored]:
            """The next events; [] at the end of the step."""
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
            raise JobFailed(
                f"the log has dropped events that were not replayed yet: {error.message};"
                " start another replay with a later start"
            ) from None


async def _poll(reader: LogReader, limit: int, journey: _Progress) -> list[Stored]:
    found = await reader.poll(limit, POLL_SECONDS)
    if not found:
        positions = ", ".join(f"{part}/{at}" for part, (at, _) in journey.left.items())
        raise LogUnavailable(f"the log returned no event at {positions}, although it has one there")
    return found

"""Reading a part of the log again and giving its events to a store, beside that store's own feed.

Safe at any time and as often as one likes: a store keeps a record only if its version is higher, whoever brings it, and
an event alone never makes it an owner (`services.router.core.replay`). So a replay mends a store that has lost rows,
and changes nothing at one that has not. Both stores must answer. The positions of the stores' feeds stay as they are:
it has readers of its own.

When a router dies in the middle of a step, what that step had given counts as known when it is given again: what was
read is counted right, how much of it was new may be told as less.

What is to be read is fixed when the job begins: later events come to the store by its feed as ever.

With `dry_run` nothing is given to the store; instead its versions are compared with those of the events, and counted as
if they had been. There an event that is in the log twice may be counted twice, if the copies are far apart.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.eventlog.port import EventLog, LogReader, LogUnavailable, OffsetGone, Stored
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import all_or_none
from services.router.core.retention import parse_start
from services.router.flows.feed.events import check_name
from services.router.flows.feed.retention import BeginningGone, look_up
from services.router.flows.jobs.kind import JobFailed, Position, Step
from services.router.flows.jobs.replay_writer import Counts, ReplayWriter
from services.router.flows.stores import Away, StoreClient, Stores

NAME = "replay"

POLL_EVENTS = 2000
"""Read and given to the store at once."""
STEP_SECONDS = 1.0
"""After so long a step reads no further: it is longer than other jobs' since opening a reader takes a while."""
POLL_SECONDS = 5.0
CHECK_SECONDS = 5.0
READY_SECONDS = 1.5
"""How long a store may refuse connections before it counts as missing: one that has just started is found in less."""
AGAIN_SECONDS = 0.1


@dataclass(slots=True)
class _Progress:
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
        return json.dumps([list(self.ranges.items()), self.events, self.counts.to_json()]).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> _Progress:
        ranges, events, counts = json.loads(checkpoint)
        return cls({partition: (at, end) for partition, (at, end) in ranges}, events, Counts(**counts))


class StoreMissing(BatonError):
    """A replay needs both stores, or old events could give a record a second owner. Start or recover that store."""

    code = "FAILED_PRECONDITION"
    reason = "STORE_NOT_READY"


class Replay:
    """A `JobKind`. `to`: A or B. `start`: where to begin (`services.router.core.retention`). `name`: only this record.
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
        """Raises StoreMissing."""
        for client in self._stores.values():
            status = await self._status(client)
            if not status.serving:
                raise StoreMissing(f"store {client.store} does not serve ({status.reason}): {StoreMissing.__doc__}")

    async def step(self, at: Position) -> Step:
        """Raises what the stores' clients and the log raise; JobFailed when the log has dropped what comes next."""
        journey = _Progress.decode(at.checkpoint) if at.checkpoint else await self._begin(at.arguments)
        work = ReplayWriter(self._stores, self._log, at.arguments, journey.counts)
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
            report=json.dumps({**at.arguments, **counts.to_json()}),
        )

    async def _begin(self, arguments: Mapping[str, str]) -> _Progress:
        try:
            window = await look_up(self._log, parse_start(arguments["start"]), arguments.get("name", ""))
        except (BeginningGone, InvalidField) as error:
            raise JobFailed(error.message) from None
        return _Progress(dict(window.ranges), window.events, Counts())

    async def _travel(self, journey: _Progress, work: ReplayWriter, limit: int) -> None:
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


async def _poll(reader: LogReader, limit: int, journey: _Progress) -> list[Stored]:
    found = await reader.poll(limit, POLL_SECONDS)
    if not found:
        places = ", ".join(f"{part}/{at}" for part, (at, _) in journey.left.items())
        raise LogUnavailable(f"no event at {places}, where one is known to be")
    return found

"""Retention of the log: events that a store may miss, and the window of events that can still be read.

`services.router.core.retention` has the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from libs.clock import Age, Clock
from libs.errors import BatonError, InvalidField
from libs.eventlog.port import EventLog, OffsetGone, partition_of
from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.core.evidence import Evidence
from services.router.core.retention import KEPT_SHARE, OLDEST, Held, Risk, Start, risk_of
from services.router.flows.stores import StoreViews

INTERVAL_SECONDS = 30.0
_EPOCH = 0.0
"""The age of the epoch is the current time."""


class HorizonWatch:
    """The check that the log's retention leaves time for each store to catch up.

    It reads the log periodically, and takes the stores' positions from their last answers, however old. So it also
    covers a store that has been down for days, if this router has had an answer from it.
    """

    def __init__(self, views: StoreViews, log: EventLog, clock: Clock) -> None:
        self._views = views
        self._log = log
        self._now = Age(clock)
        self._now.seconds(_EPOCH)
        self._held: Mapping[int, Held] | None = None
        self.loop = Loop("horizon", self._body, longest_pause_seconds=INTERVAL_SECONDS)

    def evidence(self, seen: Evidence) -> Evidence:
        """Add the risks to the evidence, unless the log was never reachable."""
        return seen if self._held is None else replace(seen, risks=tuple(self._risks(self._held)))

    async def look(self) -> None:
        """Read the log. If it raises LogUnavailable or TopicUnfit, the last results stay."""
        ends = await self._log.ends()  # First, since a log that was not open yet does not know its retention.
        seconds, by_size = self._log.retention
        aged = {} if seconds is None else await self._log.offsets_at(self._now.seconds(_EPOCH) - KEPT_SHARE * seconds)
        self._held = {
            partition: Held(oldest, end, aged.get(partition, oldest), by_size)
            for partition, (oldest, end) in ends.items()
        }

    def _risks(self, held: Mapping[int, Held]) -> list[Risk]:
        statuses = [(store, self._views.view(store).status) for store in Store]
        return [
            risk_of(store.value, dict(status.feed.next_offsets), held)
            for store, status in statuses
            if status is not None
        ]

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)


class BeginningGone(BatonError):
    """The log no longer has the start of the window."""

    code = "OUT_OF_RANGE"
    reason = OffsetGone.reason


@dataclass(frozen=True, slots=True)
class Window:
    """The first offset to read and the end offset of each partition."""

    ranges: Mapping[int, tuple[int, int]]

    @property
    def events(self) -> int:
        return sum(end - start for start, end in self.ranges.values())


async def look_up(log: EventLog, start: Start, name: str = "") -> Window:
    """Return the window from the start to the log's current end; with a name, only of its partition.

    Raises BeginningGone if retention may have dropped events of the window, InvalidField for a position that the log
    never had, and LogUnavailable.
    """
    # Read the ends last, so that no offset found by time is beyond them.
    timed = None if start.time_seconds is None else await log.offsets_at(start.time_seconds)
    ends = await log.ends()
    wanted = set(start.positions or ends)
    if name:
        partition = partition_of(name, log.partitions)
        if partition not in wanted:
            raise InvalidField("start", name, f"a position in partition {partition}, which has this record")
        wanted = {partition}
    ranges = {}
    for partition in sorted(wanted):
        if partition not in ends:
            raise InvalidField("start", f"partition {partition}", f"partitions 0 to {len(ends) - 1}")
        oldest, end = ends[partition]
        if timed is not None:
            first = _timed(timed[partition], partition, oldest)
        elif start.positions:
            first = _placed(start.positions[partition], partition, oldest, end)
        else:
            first = oldest
        ranges[partition] = first, end
    return Window(ranges)


def _timed(first: int, partition: int, oldest: int) -> int:
    # Of the dropped events it is only known that they were older than the oldest event still there.
    if oldest and first <= oldest:
        raise BeginningGone(
            f"partition {partition} has no event from before this time: retention may have dropped later ones too, up"
            f" to offset {oldest}. Give a later time, or {OLDEST} for all existing events"
        )
    return first


def _placed(first: int, partition: int, oldest: int, end: int) -> int:
    if first < oldest:
        raise BeginningGone(
            f"partition {partition}: offset {first} was dropped by retention: {oldest} is the oldest offset"
        )
    if first > end:
        raise InvalidField("start", f"{partition}/{first}", f"at most {partition}/{end}, where the log ends")
    return first

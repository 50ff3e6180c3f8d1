"""Which events of the log are to be read: from where on, and up to where the log ends now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.errors import BatonError, InvalidField
from libs.eventlog.port import EventLog, OffsetGone, partition_of
from services.router.core.logstart import OLDEST, Start


class BeginningGone(BatonError):
    """The log does not hold the beginning any more."""

    code = "OUT_OF_RANGE"
    reason = OffsetGone.reason


@dataclass(frozen=True, slots=True)
class Window:
    """By partition the next offset to read, and the one at which to end."""

    ranges: Mapping[int, tuple[int, int]]

    @property
    def events(self) -> int:
        return sum(end - start for start, end in self.ranges.values())


async def look_up(log: EventLog, start: Start, name: str = "") -> Window:
    """The events from there up to the log's end as it is now; with a name only its partition's.

    Raises BeginningGone when some that are asked for may have been dropped, InvalidField for a place that the log never
    had, LogUnavailable.
    """
    # First by time, then the ends: no offset is beyond them.
    timed = None if start.time_seconds is None else await log.offsets_at(start.time_seconds)
    ends = await log.ends()
    wanted = set(start.places or ends)
    if name:
        partition = partition_of(name, log.partitions)
        if partition not in wanted:
            raise InvalidField("start", name, f"places of partition {partition}: there is this record")
        wanted = {partition}
    ranges = {}
    for partition in sorted(wanted):
        if partition not in ends:
            raise InvalidField("start", f"partition {partition}", f"partitions 0 to {len(ends) - 1}")
        oldest, end = ends[partition]
        if timed is not None:
            first = _timed(timed[partition], partition, oldest)
        elif start.places:
            first = _placed(start.places[partition], partition, oldest, end)
        else:
            first = oldest
        ranges[partition] = first, end
    return Window(ranges)


def _timed(first: int, partition: int, oldest: int) -> int:
    # Nothing is known of what was dropped but that it was there before the oldest event that is held.
    if oldest and first <= oldest:
        raise BeginningGone(
            f"partition {partition} holds nothing that was appended before this time: of what came after it some may"
            f" have been dropped by retention, up to offset {oldest}. Give a later time, or {OLDEST} for all that is"
            " held"
        )
    return first


def _placed(first: int, partition: int, oldest: int, end: int) -> int:
    if first < oldest:
        raise BeginningGone(
            f"partition {partition}: offset {first} was dropped by retention: {oldest} is the oldest that is held"
        )
    if first > end:
        raise InvalidField("start", f"{partition}/{first}", f"at most {partition}/{end}, where the log ends")
    return first

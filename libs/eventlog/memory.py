"""The event log in the memory of one process. It has every guarantee but durability."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from uuid import uuid4

from libs.clock import Clock, SystemClock
from libs.eventlog.port import (
    POLL_BYTES,
    Event,
    LogUnavailable,
    OffsetGone,
    Retention,
    Stored,
    check_poll,
    check_positions,
    check_time,
    place,
)


@dataclass(slots=True)
class _Partition:
    oldest: int = 0
    held: list[Stored] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.oldest + len(self.held)

    def trim(self, oldest: int) -> None:
        drop = min(max(oldest - self.oldest, 0), len(self.held))
        del self.held[:drop]
        self.oldest += drop


class MemoryEventLog:
    """An `EventLog` in memory.

    `retained`: number of events kept per partition, the newest ones; None keeps all until `trim`. While `reachable` is
    False, every call raises `LogUnavailable`.
    """

    def __init__(self, partitions: int = 16, *, retained: int | None = None, clock: Clock | None = None) -> None:
        if partitions < 1:
            raise ValueError(f"partitions is {partitions}; it must be at least 1")
        if retained is not None and retained < 1:
            raise ValueError(f"retained is {retained}; it must be at least 1, or None to keep all")
        self.reachable = True
        self._partitions = [_Partition() for _ in range(partitions)]
        self._retained = retained
        self._clock = clock or SystemClock()
        self._changed = asyncio.Event()
        self._closed = False
        self._id = uuid4().hex
        self._epoch = 0

    @property
    def id(self) -> str:
        return self._id

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    @property
    def name(self) -> str:
        return "memory"

    @property
    def retention(self) -> Retention:
        return Retention()

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        self._check_reachable()
        placed = place(events, partition, self.partitions)
        now = self._clock.now()
        for number, event in placed:
            part = self._partitions[number]
            part.held.append(Stored(number, part.end, event, now))
            if self._retained is not None:
                part.trim(part.end - self._retained)
        self._wake()

    @asynccontextmanager
    async def reader(self, positions: Mapping[int, int]) -> AsyncIterator["_MemoryReader"]:
        yield _MemoryReader(self, check_positions(positions, self.partitions))

    async def ends(self) -> dict[int, tuple[int, int]]:
        self._check_reachable()
        return {number: (part.oldest, part.end) for number, part in enumerate(self._partitions)}

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        self._check_reachable()
        check_time(time_seconds)
        return {
            number: next((stored.offset for stored in part.held if stored.time >= time_seconds), part.end)
            for number, part in enumerate(self._partitions)
        }

    async def close(self) -> None:
        self._closed = True
        self._wake()

    async def trim(self, partition: int, oldest: int) -> None:
        """Drop the events of `partition` below the offset `oldest`, as retention would."""
        self._partitions[partition].trim(oldest)
        self._wake()

    async def replace(self) -> None:
        """Become a new, empty log, like a topic that was deleted and recreated."""
        self._partitions = [_Partition() for _ in self._partitions]
        self._id, self._epoch = uuid4().hex, self._epoch + 1
        self._wake()

    def _wake(self) -> None:
        # Current waiters hold the old event; a later waiter checks the partitions before it waits.
        self._changed.set()
        self._changed = asyncio.Event()

    def _check_reachable(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed")
        if not self.reachable:
            raise LogUnavailable("the log in memory was made unreachable")


class _MemoryReader:
    def __init__(self, log: MemoryEventLog, positions: dict[int, int]) -> None:
        self._log = log
        self._positions = positions

    @property
    def epoch(self) -> int:
        return self._log._epoch

    async def poll(self, limit: int, wait_seconds: float) -> list[Stored]:
        check_poll(limit, wait_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while not (found := self._take(limit)):
                    await self._log._changed.wait()
                return found
        return self._take(limit)

    def _take(self, limit: int) -> list[Stored]:
        self._log._check_reachable()
        found: list[Stored] = []
        room = POLL_BYTES
        for number, position in list(self._positions.items()):
            part = self._log._partitions[number]
            if not part.oldest <= position <= part.end:
                if found:
                    break
                raise OffsetGone(number, position, part.oldest)
            start = position - part.oldest
            for stored in part.held[start : start + limit - len(found)]:
                found.append(stored)
                self._positions[number] = stored.offset + 1
                room -= stored.event.size
                if room <= 0:
                    break
            if len(found) == limit or room <= 0:
                self._move_to_end(number)
                break
        return found

    def _move_to_end(self, number: int) -> None:
        """Read the other partitions first at the next poll, so that a busy one cannot starve them."""
        self._positions[number] = self._positions.pop(number)

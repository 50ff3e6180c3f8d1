"""Upkeep of a store by one of its processes: advancing its ticks, and pruning old state."""

from __future__ import annotations

import asyncio

from libs.clock import Clock
from libs.ownership.limits import LONGEST_TICK_SECONDS
from libs.store.limits import PRUNE_ROWS
from libs.store.port import StorePorts
from libs.tasks import Loop

TICK_SECONDS = 1.0
PRUNE_SECONDS = 5.0
"""Pause between two prunes. A store keeps served requests for the retry window plus this pause."""


class UpkeepLoop:
    """Ticks are elapsed monotonic time: they stand still while no process runs, and ignore the wall clock."""

    def __init__(self, ports: StorePorts, clock: Clock) -> None:
        self.loop = Loop("upkeep", self._run)
        self._ports = ports
        self._clock = clock
        self._last = clock.monotonic()

    async def _run(self, loop: Loop) -> None:
        await asyncio.sleep(TICK_SECONDS)
        await self.tick()
        loop.well()

    async def tick(self) -> None:
        """Advance the ticks by at most LONGEST_TICK_SECONDS. Further time, in which the store or this process stood
        still, is not counted: leases and served requests may last longer, never shorter."""
        began = self._clock.monotonic()
        elapsed = min(began - self._last, LONGEST_TICK_SECONDS)
        await self._ports.upkeep.tick(elapsed)
        # The time to write this tick is counted by the next one. A lease granted just before the write sees both, so
        # together they must not exceed the limit of one.
        self._last = max(began, self._clock.monotonic() - (LONGEST_TICK_SECONDS - elapsed))


class PruneLoop:
    """Prunes old served requests, whatever their number. Separate from the ticks, which a long prune must not delay."""

    def __init__(self, ports: StorePorts) -> None:
        self.loop = Loop("pruning", self._run)
        self._ports = ports

    async def _run(self, loop: Loop) -> None:
        await asyncio.sleep(PRUNE_SECONDS)
        await self.prune()
        loop.well()

    async def prune(self) -> None:
        """Prune batch by batch until a batch is not full, yielding to calls in between."""
        pruned = PRUNE_ROWS
        while pruned >= PRUNE_ROWS:
            pruned = await self._ports.upkeep.prune()
            await asyncio.sleep(0)
        await self._ports.aside.prune()

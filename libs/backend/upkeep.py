"""The store's clock and its forgetting: what one process does for a store while it lives."""

from __future__ import annotations

import asyncio

from libs.clock import Clock
from libs.ownership.limits import LONGEST_TICK_SECONDS
from libs.store.limits import PRUNE_ROWS
from libs.store.port import StorePorts
from libs.tasks import Loop

TICK_SECONDS = 1.0
PRUNE_SECONDS = 5.0
"""Pause between two prunes. A store keeps the served requests of the retry window and of this pause."""


class UpkeepLoop:
    """Ticks are elapsed monotonic time: they stand still while no process lives, and no wall clock moves them."""

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
        """At most LONGEST_TICK_SECONDS at once. What went by beyond that, while the store or this process stood still,
        is not counted: leases and memories may last longer by it, never shorter."""
        began = self._clock.monotonic()
        elapsed = min(began - self._last, LONGEST_TICK_SECONDS)
        await self._ports.upkeep.tick(elapsed)
        # What this tick took to be written down is counted by the next one. A lease that was granted just before it was
        # written sees both, so together they must not be more than one may be.
        self._last = max(began, self._clock.monotonic() - (LONGEST_TICK_SECONDS - elapsed))


class PruneLoop:
    """Forgets old served requests, however many there are. Beside the ticks, which a long prune must not delay."""

    def __init__(self, ports: StorePorts) -> None:
        self.loop = Loop("pruning", self._run)
        self._ports = ports

    async def _run(self, loop: Loop) -> None:
        await asyncio.sleep(PRUNE_SECONDS)
        await self.prune()
        loop.well()

    async def prune(self) -> None:
        """One batch after the other until fewer than a whole batch are old. Calls get their time in between."""
        pruned = PRUNE_ROWS
        while pruned >= PRUNE_ROWS:
            pruned = await self._ports.upkeep.prune()
            await asyncio.sleep(0)
        await self._ports.aside.prune()

"""Ticks and pruning of a store in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.store.limits import PRUNE_ROWS
from libs.store.memory_state import MemoryState


@dataclass(frozen=True)
class MemoryUpkeep:
    state: MemoryState

    async def tick(self, elapsed_seconds: float) -> None:
        async with self.state.lock:
            self.state.seconds += max(0.0, elapsed_seconds)

    async def prune(self) -> int:
        state = self.state
        async with state.lock:
            since = state.seconds - RETRY_WINDOW_SECONDS
            oldest = islice(state.served.items(), PRUNE_ROWS)
            old = [name for name, (_, learned) in oldest if learned < since]
            for name in old:
                del state.served[name]
            return len(old)

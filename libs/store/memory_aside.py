"""Events that a store in memory has set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Version
from libs.store.aside import MAX_ASIDE, AsideEntry, Refusal
from libs.store.memory_state import MemoryState


@dataclass(frozen=True)
class MemoryAside:
    state: MemoryState

    async def set_aside(self, refusals: Sequence[Refusal]) -> list[tuple[str, Version]]:
        state = self.state
        moved = []
        async with state.lock:
            for key, version, reason in refusals:
                if (key, version) in state.outbox and len(state.aside) < MAX_ASIDE:
                    entry, ticks = state.outbox.pop((key, version))
                    state.aside[key, version] = AsideEntry(entry, reason), ticks
                    moved.append((key, version))
        return moved

    async def entries(self, limit: int) -> list[AsideEntry]:
        return [entry for entry, _ in self.state.aside.values()][:limit]

    async def count(self) -> int:
        return len(self.state.aside)

    async def remove(self, changes: Sequence[tuple[str, Version]]) -> int:
        async with self.state.lock:
            return sum(self.state.aside.pop(change, None) is not None for change in changes)

    async def prune(self) -> int:
        state = self.state
        async with state.lock:
            waiting = {key for key, _ in state.outbox}
            once = Counter(key for key, _ in state.aside)
            old = [
                (key, version)
                for (key, version), (_, ticks) in state.aside.items()
                if ticks < state.seconds - RETRY_WINDOW_SECONDS
                and key not in waiting
                and once[key] == 1
                and (row := state.rows.get(key)) is not None
                and row.version > version
            ]
            for change in old:
                del state.aside[change]
            return len(old)

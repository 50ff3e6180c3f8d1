"""Loss and recovery of a store in memory. The store has no backups, so its data is never restored to an earlier
state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from libs.ownership.model import BUCKETS, Version
from libs.store.engine_ports import EngineRecovery, EngineSeizures
from libs.store.memory_state import MemoryState
from libs.store.memory_transaction import MemoryTransactions, standing_of
from libs.store.recovery import Conflict, Standing


class MemoryRecovery(EngineRecovery):
    """`libs.store.recovery.Recovery`."""

    def __init__(self, state: MemoryState, transactions: MemoryTransactions) -> None:
        super().__init__(transactions)
        self._state = state

    async def standing(self) -> Standing:
        return standing_of(self._state)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        feed = self._state.feed
        known = feed.next_offsets
        further = {part: max(offset, known.get(part, 0)) for part, offset in next_offsets.items()}
        marks = {part: "" if further.get(part, 0) > known.get(part, 0) else mark for part, mark in feed.marks.items()}
        self._state.feed = replace(feed, next_offsets={**known, **further}, marks=marks)


class MemorySeizures(EngineSeizures):
    """`libs.store.recovery.Seizures`."""

    def __init__(self, state: MemoryState, transactions: MemoryTransactions) -> None:
        super().__init__(transactions)
        self._state = state

    async def conflicts(self, limit: int) -> list[Conflict]:
        return sorted(self._state.metadata.journal.values(), key=lambda one: bool(one.resolution))[:limit]

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        metadata = self._state.metadata
        return {bucket for bucket in buckets or range(BUCKETS) if metadata.disputed(bucket)}

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        journal = self._state.metadata.journal
        found = journal.get((key, version))
        if found is None or found.resolution or not resolution:
            return False
        journal[key, version] = replace(found, resolution=resolution)
        return True

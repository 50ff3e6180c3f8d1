"""A store in the memory of one process, for tests and experiments.

Its data ends with the process, so "durable" means: as long as the process lives. Every other promise of the ports
holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from libs.clock import Clock
from libs.contract.pages import ACCOUNT, Page
from libs.ownership.model import BUCKETS, Answered, BucketOwner, Call, Changed, Decide, Found, Record, Store, Version
from libs.store import engine, engine_apply
from libs.store.aside import Aside
from libs.store.columns import ColumnsOf, matches
from libs.store.connections import PoolState
from libs.store.engine_ports import EngineTransfers
from libs.store.inspection import Inspection
from libs.store.limits import LIST_ROWS, PULL_BYTES, OutboxLimits
from libs.store.memory_aside import MemoryAside
from libs.store.memory_inspection import MemoryInspection
from libs.store.memory_recovery import MemoryRecovery, MemorySeizures
from libs.store.memory_state import MemoryState
from libs.store.memory_transaction import MemoryTransactions
from libs.store.memory_upkeep import MemoryUpkeep
from libs.store.memory_watch import MemoryWatch
from libs.store.outbox import ChangeEntry, Depth, Outbox
from libs.store.port import Applied, Feed, FeedState, Listed, Parked, Records, Transfers, Upkeep, Watch
from libs.store.recovery import Recovery, Seizures
from libs.store.transaction import Lane
from libs.store.window import up_to_other


@dataclass(frozen=True)
class _Records:
    state: MemoryState
    transactions: MemoryTransactions

    async def read(self, key: str) -> Found:
        return self.state.find(key)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return [self.state.find(key) for key in keys]

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        return await self.transactions.run(partial(engine.write, call=call, decide=decide))

    async def page(self, page: Page) -> list[Listed]:
        rows = self.state.visible_rows()
        if page.filter.accounts is not None and not page.keys:
            # As an index of accounts: the others' rows are not examined, and no page ends at one.
            accounts = {dict(one.equals)[ACCOUNT] for one in page.filter.by_account()}
            rows = {key: row for key, row in rows.items() if self.state.columns(row).equals.get(ACCOUNT) in accounts}
        keys = [key for key in sorted(page.keys or rows) if key in rows and (page.keys or key > page.after)]
        listed = (Listed(rows[key], matches(rows[key], self.state.columns(rows[key]), page.filter)) for key in keys)
        if page.keys:
            return [one for one in listed if one.row.write_version.revision]
        found = [one for one in islice(listed, LIST_ROWS) if one.matches]
        return found[: page.limit] if len(found) >= page.limit else up_to_other(found, listed, page.limit)


class _Transfers(EngineTransfers):
    def __init__(self, state: MemoryState, transactions: MemoryTransactions) -> None:
        super().__init__(transactions, state.store)
        self._state = state

    async def bucket_owners(self, buckets: Sequence[int] = ()) -> list[BucketOwner]:
        return [self._state.bucket_owners[bucket] for bucket in (sorted(set(buckets)) or range(BUCKETS))]


@dataclass(frozen=True)
class _Outbox:
    state: MemoryState

    async def pull(
        self, limit: int, wait_seconds: float, without: Collection[tuple[str, Version]] = ()
    ) -> list[ChangeEntry]:
        state = self.state
        try:
            async with asyncio.timeout(wait_seconds):
                while state.outbox.keys() <= set(without):
                    state.changed.clear()
                    await state.changed.wait()
        except TimeoutError:
            return []
        entries: list[ChangeEntry] = []
        size = 0
        for name, (entry, _) in state.outbox.items():
            if name in without:
                continue
            size += len(entry.event)
            if entries and (len(entries) >= limit or size > PULL_BYTES):
                break
            entries.append(entry)
        return entries

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        async with self.state.lock:
            return sum(self.state.outbox.pop(change, None) is not None for change in changes)

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        return {change for change in changes if change in self.state.outbox or change in self.state.aside}

    async def depth(self) -> Depth:
        return self.state.depth()


@dataclass(frozen=True)
class _Feed:
    memory: MemoryState
    transactions: MemoryTransactions

    async def state(self) -> FeedState:
        unauthenticated = sum(one.unauthenticated for one in self.memory.parked.values())
        return replace(self.memory.feed, parked_now=len(self.memory.parked), unauthenticated_now=unauthenticated)

    async def parked(self, limit: int, position: tuple[int, int] | None = None) -> list[Parked]:
        parked = self.memory.parked
        return [parked[at] for at in (parked if position is None else (position,)) if at in parked][:limit]

    async def parked_after(self, position: tuple[int, int], limit: int) -> list[Parked]:
        return [self.memory.parked[at] for at in sorted(self.memory.parked) if at > position][:limit]

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        unpark = partial(engine_apply.unpark, partition=partition, offset=offset, record=record)
        return await self.transactions.run(unpark, Lane.FEED)

    async def drop(self, partition: int, offset: int) -> bool:
        async with self.memory.lock:
            return self.memory.parked.pop((partition, offset), None) is not None

    async def drop_unauthenticated(self) -> int:
        async with self.memory.lock:
            found = [at for at, one in self.memory.parked.items() if one.unauthenticated]
            for at in found:
                del self.memory.parked[at]
            return len(found)

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        async with self.memory.lock:
            checked = dict.fromkeys(self.memory.feed.checked_from, 0)
            self.memory.feed = replace(
                self.memory.feed, next_offsets=dict(next_offsets), marks={}, checked_from=checked
            )

    async def start_checking(self, offsets: Mapping[int, int]) -> Mapping[int, int]:
        async with self.memory.lock:
            if not self.memory.feed.checked_from:
                self.memory.feed = replace(self.memory.feed, checked_from=dict(offsets))
            return self.memory.feed.checked_from

    async def stop_checking(self) -> None:
        async with self.memory.lock:
            self.memory.feed = replace(self.memory.feed, checked_from={})

    async def claim(self, partitions: int) -> Sequence[int]:
        return range(partitions)


class MemoryStore:
    """An open store that implements `StorePorts`. Its buckets start as (term, version, owner) = (0, 1, A) at store A
    and (0, 0, A) at store B."""

    backend = "memory"

    def __init__(self, store: Store, clock: Clock, columns: ColumnsOf, limits: OutboxLimits | None = None) -> None:
        version = 1 if store is Store.A else 0
        bucket_owners = [BucketOwner(bucket, 0, version, Store.A) for bucket in range(BUCKETS)]
        state = MemoryState(store, clock, limits or OutboxLimits(), columns, bucket_owners)
        transactions = MemoryTransactions(state)
        self.store = store
        self._state = state
        self.records: Records = _Records(state, transactions)
        self.transfers: Transfers = _Transfers(state, transactions)
        self.outbox: Outbox = _Outbox(state)
        self.aside: Aside = MemoryAside(state)
        self.feed: Feed = _Feed(state, transactions)
        self.inspection: Inspection = MemoryInspection(state)
        self.watch: Watch = MemoryWatch(state.changes)
        self.upkeep: Upkeep = MemoryUpkeep(state)
        self.recovery: Recovery = MemoryRecovery(state, transactions)
        self.seizures: Seizures = MemorySeizures(state, transactions)
        self.connections_in_use = 0
        self.pools: tuple[PoolState, ...] = ()

    def __repr__(self) -> str:
        return f"<MemoryStore {self.store} records={len(self._state.rows)}>"

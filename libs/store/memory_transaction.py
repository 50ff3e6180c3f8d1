"""One open transaction of a store in memory. It holds the store's lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from libs.clock import Clock
from libs.ownership.model import BucketOwner, Call, Found, Head, Row, Served, Store, Version, bucket_of
from libs.store.limits import Held, OutboxLimits
from libs.store.memory_state import MemoryState
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedStep, Parked, Position
from libs.store.recovery import Conflict, Identity, Standing
from libs.store.transaction import (
    Counts,
    Lane,
    Owned,
    Procedure,
    Put,
    PutBucket,
    PutHead,
    StartAgain,
    T,
    run_to_end,
)


@dataclass(frozen=True)
class MemoryTransactions:
    """`libs.store.transaction.Transactions`."""

    state: MemoryState

    async def run(self, procedure: Procedure[T], lane: Lane = Lane.CALL) -> T:
        async with self.state.lock:
            tx = MemoryTransaction(self.state)
            with self.state.atomic():
                result = run_to_end(procedure(tx))
            tx.committed()
            return result


@dataclass
class MemoryTransaction:
    """`libs.store.transaction.Transaction`."""

    state: MemoryState
    written: list[Put] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.state.store

    @property
    def clock(self) -> Clock:
        return self.state.clock

    @property
    def limits(self) -> OutboxLimits:
        return self.state.limits

    def committed(self) -> None:
        for row, before in self.written:
            self.state.changes.note(before, row)
        if self.state.outbox:
            self.state.changed.set()

    async def find(self, call: Call) -> Found:
        return self.state.find(call.key, call)

    async def found(self, keys: Sequence[str], *, create: bool, wait: bool) -> Mapping[str, Found]:
        return {key: self.state.find(key) for key in keys}

    async def rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        return {key: self.state.rows[key] for key in keys if key in self.state.rows}

    async def rows_of_bucket(self, bucket: int) -> Sequence[Row]:
        return [row for key, row in sorted(self.state.rows.items()) if bucket_of(key) == bucket]

    async def hidden(self, limit: int, bucket: int | None = None) -> Sequence[Row]:
        keys = [key for key in sorted(self.state.rows) if self.state.shown(key) is None]
        return [self.state.rows[key] for key in keys if bucket is None or bucket_of(key) == bucket][:limit]

    async def put(self, puts: Sequence[Put], *, own: bool) -> set[str]:
        return {put.row.key for put in puts if not self._put(put, own=own)}

    def _put(self, put: Put, *, own: bool) -> bool:
        row, before = put
        key, bucket = row.key, self.state.bucket_owners[bucket_of(row.key)]
        here = self.state.rows.get(key)
        if before is None or here is None:
            fits = before is here and bucket.term == row.version.term
        else:
            fits = (here.version, here.owner) == (before.version, before.owner)
        owner = bucket.owner if before is None else before.owner
        if not fits or (own and (owner is not self.store or self.state.metadata.fence_reason)):
            return False
        self.state.counted[bucket_of(key)] += here is None
        self.state.rows[key] = row
        self._note_lease(row)
        self.written.append(put)
        return True

    def _note_lease(self, row: Row) -> None:
        mark = self.state.columns(row).lease
        if not mark:
            self.state.leases.pop(row.key, None)
        elif mark != self.state.leases.get(row.key, ("", 0.0))[0]:
            self.state.leases[row.key] = mark, self.state.seconds

    async def owned(self, buckets: Sequence[int], after: str, limit: int) -> Sequence[Owned]:
        start = (bucket_of(after), after.encode()) if after else (-1, b"")
        places = sorted((bucket_of(key), key.encode()) for key in self.state.rows)
        keys = [key.decode() for bucket, key in places if bucket in buckets and (bucket, key) > start]
        rows = [row for key in keys if (row := self.state.shown(key)) is not None and row.owner is self.store]
        return [Owned(row.key, len(row.payload)) for row in rows[:limit]]

    async def lock_owned(self, keys: Sequence[str]) -> Sequence[Row]:
        rows = [row for key in keys if (row := self.state.shown(key)) is not None]
        return [row for row in rows if row.owner is self.store]

    async def heads(self, keys: Sequence[str], *, lock: bool) -> Mapping[str, Head]:
        return {key: row.head for key, row in (await self.rows(keys)).items()}

    async def put_heads(self, puts: Sequence[PutHead], *, own: bool) -> set[str]:
        return {put.head.key for put in puts if not self._put_head(put, own=own)}

    def _put_head(self, put: PutHead, *, own: bool) -> bool:
        head, before = put
        here = self.state.rows.get(head.key)
        if here is None or (here.version, here.owner) != (before.version, before.owner):
            return False
        row = replace(here, version=head.version, owner=head.owner, bases=head.bases)
        return self._put(Put(row, here), own=own)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self.state.rows[key]
            self.state.counted[bucket_of(key)] -= 1

    async def served(
        self, effects: Sequence[tuple[str, Version]], *, answers: bool = True
    ) -> Sequence[tuple[str, Served]]:
        found = self.state.served_up_to(effects)
        return found if answers else [(key, replace(one, answer=None)) for key, one in found]

    async def serve(self, key: str, served: Served, known: Served | None) -> bool:
        name = key, served.principal, served.request_id
        # Add the entry at the end: entries are kept in the order in which they were learned.
        self.state.served.pop(name, None)
        self.state.served[name] = served, self.state.seconds
        return True

    async def learn(self, learned: Sequence[tuple[str, Served]]) -> None:
        for key, served in learned:
            known = self.state.served.get((key, served.principal, served.request_id))
            if known is None or known[0].version < served.version:
                await self.serve(key, served, None)

    async def forget(self, keys: Sequence[str]) -> None:
        for name in [name for name in self.state.served if name[0] in keys]:
            del self.state.served[name]

    async def buckets(self, numbers: Sequence[int], *, shared: bool = False) -> Mapping[int, BucketOwner]:
        return {number: self.state.bucket_owners[number] for number in numbers}

    async def put_buckets(self, puts: Sequence[PutBucket]) -> None:
        for bucket, before in puts:
            if self.state.bucket_owners[bucket.bucket] != before:
                raise StartAgain
            self.state.bucket_owners[bucket.bucket] = bucket
            self.state.metadata.changes += 1

    async def depth(self) -> Depth:
        return self.state.depth()

    async def held(self) -> Held:
        return self.state.held()

    async def enqueue(self, entries: Sequence[ChangeEntry]) -> None:
        for entry in entries:
            self.state.outbox[entry.key, entry.version] = entry, self.state.seconds
            self.state.metadata.changes += 1

    async def move(self, positions: Sequence[Position]) -> bool:
        feed = self.state.feed
        if any(feed.next_offsets.get(one.partition, 0) != one.before for one in positions):
            return False
        moved = {one.partition: one.after for one in positions}
        marks = {one.partition: one.mark for one in positions}
        self.state.feed = replace(feed, next_offsets={**feed.next_offsets, **moved}, marks={**feed.marks, **marks})
        return True

    async def park(self, parked: Sequence[Parked]) -> None:
        for one in parked:
            at = one.partition, one.offset
            before = self.state.parked.get(at)
            if before is None or before.unauthenticated or not one.unauthenticated:
                self.state.parked.pop(at, None)
                self.state.parked[at] = one

    async def trim_unauthenticated(self, events: int, size: int) -> None:
        count = total = 0
        for at, one in reversed(list(self.state.parked.items())):
            if one.unauthenticated:
                count, total = count + 1, total + len(one.event) + len(one.headers)
                if count > 1 and (count > events or total > size):
                    del self.state.parked[at]

    async def unpark(self, partition: int, offset: int) -> bool:
        return self.state.parked.pop((partition, offset), None) is not None

    async def count(self, step: FeedStep, counts: Counts) -> None:
        feed = self.state.feed
        self.state.feed = replace(
            feed,
            applied=feed.applied + counts.applied,
            old=feed.old + counts.old,
            parked=feed.parked + counts.parked,
            journaled=feed.journaled + counts.journaled,
            unauthenticated=feed.unauthenticated + counts.unauthenticated,
        )

    async def disputed(self, buckets: Sequence[int]) -> set[int]:
        return {bucket for bucket in buckets if self.state.metadata.disputed(bucket)}

    async def journal(self, conflicts: Sequence[Conflict]) -> None:
        for one in conflicts:
            self.state.metadata.journal.setdefault((one.key, one.version), one)

    async def fence_reason(self) -> str:
        return self.state.metadata.fence_reason

    async def standing(self) -> Standing:
        return standing_of(self.state)

    async def put_standing(self, standing: Standing) -> None:
        self.state.metadata = replace(
            self.state.metadata,
            fence_reason=standing.fence_reason,
            order=standing.order,
            fenced_at=standing.fenced_at,
            other=standing.other,
        )

    async def count_rows(self) -> None:
        self.state.counted.clear()
        self.state.counted.update(map(bucket_of, self.state.rows))

    async def invalidate_positions(self) -> None:
        self.state.changes.epoch = uuid4().hex


def standing_of(state: MemoryState) -> Standing:
    known = state.metadata
    open_ones = sum(not one.resolution for one in known.journal.values())
    now = Identity(known.database, known.changes)
    return Standing(now, known.database, known.fence_reason, known.other, open_ones, known.order, known.fenced_at)

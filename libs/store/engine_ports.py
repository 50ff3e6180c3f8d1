"""Ports of a store (`libs.store.port`, `libs.store.recovery`), implemented by the engine over the adapter's
transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from libs.ownership.limits import BULK_LOCK_SECONDS, BULK_ROWS, RELEASE_ANSWER_BYTES
from libs.ownership.model import BucketOwner, BulkEntry, BulkRelease, Record, Store
from libs.ownership.orders import Order
from libs.store import engine, engine_apply, engine_recovery
from libs.store.port import Applied, BulkReleased, FeedStep, Released, ReleaseResult, Taken
from libs.store.recovery import Identity, Standing
from libs.store.transaction import Lane, Transaction, Transactions
from libs.store.window import size_of

RELEASE_KEYS = 50
"""Keys of one transaction. A client's write may wait for one such transaction during a large release."""

FEWEST_BULK_ROWS = 100
"""Minimum number of records to release or take in one transaction: a smaller one costs more than it spares clients."""

BUCKETS_AT_ONCE = 128
"""Buckets whose owners change in one transaction. Creates in them wait for it."""

APPLY_RECORDS = 200
"""Records of one transaction, if they need not commit together with a step of the feed."""


class EngineTransfers:
    """`libs.store.port.Transfers` without `bucket_owners`, which an adapter adds."""

    def __init__(self, transactions: Transactions, store: Store) -> None:
        self._transactions = transactions
        self._store = store
        self._bulk_rows = BULK_ROWS // 4
        """Records of the next bulk release."""
        self._take_rows = BULK_ROWS // 4
        """Records of a bulk release that are taken in one transaction."""

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        results: list[ReleaseResult] = []
        room = RELEASE_ANSWER_BYTES
        while room > 0 and len(results) < len(keys):
            some = keys[len(results) : len(results) + RELEASE_KEYS]
            each = list(dict.fromkeys(some))
            order = engine.ReleaseOrder(to, create, room)
            done = {
                one.key: one for one in await self._transactions.run(partial(engine.release, keys=each, order=order))
            }
            room -= sum(size_of(one.record) for one in done.values() if one.record is not None)
            results += [done[key] for key in some if key in done]
        return Released(tuple(results), tuple(keys[len(results) :]))

    async def release_bulk(self, buckets: Sequence[int], to: Store, after: str = "") -> BulkReleased:
        if to is self._store:
            raise ValueError(f"store {to} cannot release to itself")
        release = partial(engine.release_bulk, buckets=buckets, to=to, after=after, most=self._bulk_rows)
        # Behind clients' calls, which go between two transactions.
        done = await self._transactions.run(release, Lane.BULK)
        self._bulk_rows = next_bulk_rows(self._bulk_rows, done.released, done.locked_seconds)
        return done

    async def take(self, bulk: BulkRelease) -> Taken:
        if bulk.to is not self._store:
            raise ValueError(f"store {self._store} cannot take what was released to store {bulk.to}")
        taken = old = 0
        missing: list[BulkEntry] = []
        left = bulk.entries
        while left:
            some, left = left[: self._take_rows], left[self._take_rows :]
            take = partial(_take_timed, bulk=replace(bulk, entries=some))
            done, seconds = await self._transactions.run(take, Lane.COPY)
            self._take_rows = next_bulk_rows(self._take_rows, len(some), seconds)
            taken, old, missing = taken + done.taken, old + done.old, [*missing, *done.missing]
        return Taken(taken, old, tuple(missing))

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        if step is not None:
            follow = partial(engine_apply.follow, records=records, step=step)
            return await self._transactions.run(follow, Lane.FEED)
        applied = old = 0
        # A client waits for the handoff of one record.
        lane = Lane.CALL if len(records) == 1 else Lane.COPY
        for start in range(0, len(records), APPLY_RECORDS):
            some = records[start : start + APPLY_RECORDS]
            done = await self._transactions.run(partial(engine_apply.apply, records=some), lane)
            applied, old = applied + done.applied, old + done.old
        return Applied(applied, old)

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> list[BucketOwner]:
        if to is self._store:
            raise ValueError(f"store {to} cannot release a bucket owner to itself")
        released: list[BucketOwner] = []
        for start in range(0, len(buckets), BUCKETS_AT_ONCE):
            some = buckets[start : start + BUCKETS_AT_ONCE]
            released += await self._transactions.run(partial(engine.release_buckets, buckets=some, to=to))
        return released

    async def release_bucket(self, bucket: int, to: Store) -> BucketOwner:
        (released,) = await self.release_buckets([bucket], to)
        return released

    async def adopt_buckets(
        self, bucket_owners: Sequence[BucketOwner], *, despite_conflicts: bool = False
    ) -> list[tuple[bool, BucketOwner]]:
        adopted: list[tuple[bool, BucketOwner]] = []
        for start in range(0, len(bucket_owners), BUCKETS_AT_ONCE):
            some = bucket_owners[start : start + BUCKETS_AT_ONCE]
            adopt = partial(engine.adopt_buckets, offered=some, despite_conflicts=despite_conflicts)
            adopted += await self._transactions.run(adopt)
        return adopted

    async def adopt_bucket(
        self, bucket_owner: BucketOwner, *, despite_conflicts: bool = False
    ) -> tuple[bool, BucketOwner]:
        (adopted,) = await self.adopt_buckets([bucket_owner], despite_conflicts=despite_conflicts)
        return adopted

    async def return_bucket(self, bucket_owner: BucketOwner) -> BucketOwner | None:
        return await self._transactions.run(partial(engine.decline_bucket, offered=bucket_owner))


async def _take_timed(tx: Transaction, bulk: BulkRelease) -> tuple[Taken, float]:
    began = tx.clock.monotonic()
    taken = await engine_apply.take(tx, bulk)
    return taken, tx.clock.monotonic() - began


def next_bulk_rows(rows: int, moved: int, locked_seconds: float) -> int:
    """Return the number of records to release or take at once after a transaction for up to `rows` that moved `moved`.
    `locked_seconds`: how long it held its locks."""
    if locked_seconds > BULK_LOCK_SECONDS:
        return max(rows // 2, FEWEST_BULK_ROWS)
    # A short one shows nothing about longer ones.
    return min(rows + rows // 4, BULK_ROWS) if moved == rows and locked_seconds < BULK_LOCK_SECONDS / 2 else rows


class EngineSeizures:
    """The changes of a seizure. An adapter adds the reads and `resolve` of `libs.store.recovery.Seizures`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def seize(self, bucket: int, term: int) -> BucketOwner:
        return await self._transactions.run(partial(engine_recovery.seize, bucket=bucket, term=term), Lane.CONTROL)

    async def take_terms(self, bucket_owners: Sequence[BucketOwner]) -> None:
        await self._transactions.run(partial(engine_recovery.take_terms, offered=bucket_owners), Lane.CONTROL)

    async def settle(self, limit: int) -> int:
        return await self._transactions.run(partial(engine_recovery.settle, limit=limit), Lane.CONTROL)


class EngineRecovery:
    """Changes of the store's standing. An adapter adds `standing` and `skip_to` of `libs.store.recovery.Recovery`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        change = partial(engine_recovery.fence, reason=reason, order=order, since=since)
        await self._transactions.run(change, Lane.CONTROL)

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        await self._transactions.run(partial(engine_recovery.reopen, order=order, seen=seen), Lane.CONTROL)

    async def take_order(self, order: Order) -> None:
        await self._transactions.run(partial(engine_recovery.take_order, order=order), Lane.CONTROL)

    async def vouch(self, changes: int) -> None:
        await self._transactions.run(partial(engine_recovery.vouch, changes=changes), Lane.CONTROL)

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        await self._transactions.run(partial(engine_recovery.note_other, other=other, anew=anew), Lane.CONTROL)

"""The engine's procedures for records that arrive from the other store, by a handoff, a copy or the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from libs.ownership.model import BucketOwner, BulkEntry, BulkRelease, Record, Row, Served, bucket_of
from libs.ownership.rules import Take, decide_take, is_newer, newest_of_each
from libs.ownership.terms import Fate, Verdict, decide_apply
from libs.store.engine_recovery import conflict_of, journal_rows
from libs.store.limits import UNAUTHENTICATED_BYTES, UNAUTHENTICATED_EVENTS
from libs.store.port import Applied, FeedStep, Taken, UnknownPartition
from libs.store.recovery import Why
from libs.store.transaction import Counts, Put, PutBucket, PutHead, StartAgain, Transaction

Apply = Callable[[Transaction, Sequence[Record]], Awaitable[Applied]]
"""`apply`, or an adapter's replacement of it with the same effects."""


async def apply(tx: Transaction, records: Sequence[Record]) -> Applied:
    """See `Transfers.apply`. The rules decide on one record after the other."""
    if not records:
        return Applied(0, 0)
    return await _Batch(tx).apply(records)


class _Batch:
    """The rows and requests that a batch has decided on. They are stored together, which is cheaper."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._kept_rows: dict[str, Row] = {}
        """Rows as the database has them."""
        self._kept_buckets: dict[int, BucketOwner] = {}
        self._rows: dict[str, Row] = {}
        """Rows that the batch has changed and not yet stored."""
        self._buckets: dict[int, BucketOwner] = {}
        self._learned: list[tuple[str, Served]] = []
        self._late: list[Record] = []
        self._replaced: list[Row] = []

    async def apply(self, records: Sequence[Record]) -> Applied:
        keys = sorted({record.row.key for record in records}, key=str.encode)
        self._kept_buckets.update(await self._tx.buckets(sorted({bucket_of(key) for key in keys})))
        self._kept_rows.update(await self._tx.rows(keys))
        fates = [await self._decide(record) for record in records]
        await self._store()
        return Applied(fates.count(Fate.NEWER), fates.count(Fate.OLD))

    async def _decide(self, record: Record) -> Fate:
        key, bucket = record.row.key, bucket_of(record.row.key)
        here = self._rows.get(key) or self._kept_rows.get(key)
        kept = self._buckets.get(bucket) or self._kept_buckets[bucket]
        verdict = decide_apply(record, here, kept, self._tx.store)
        if verdict.bucket_owner != kept:
            self._buckets[bucket] = verdict.bucket_owner
        if verdict.journal is not None and (key in self._rows or any(one == key for one, _ in self._learned)):
            # The journal reads a row's requests from the database, so the batch must be stored first.
            await self._store()
        self._keep(record, verdict)
        return verdict.fate

    def _keep(self, record: Record, verdict: Verdict) -> None:
        key = record.row.key
        if verdict.journal is not None:
            self._replaced.append(verdict.journal)
        if verdict.fate is Fate.CONFLICT:
            self._late.append(record)
        if verdict.learn:
            self._learned += [(key, served) for served in record.served]
        if verdict.fate is Fate.NEWER:
            self._rows[key] = record.row

    async def _store(self) -> None:
        tx = self._tx
        await tx.put_buckets([PutBucket(one, self._kept_buckets[bucket]) for bucket, one in self._buckets.items()])
        await journal_rows(tx, self._replaced, Why.REPLACED)
        await tx.journal([conflict_of(record, Why.LATE) for record in self._late])
        puts = [Put(self._rows[key], self._kept_rows.get(key)) for key in sorted(self._rows, key=str.encode)]
        if await tx.put(puts, own=False):
            raise StartAgain
        await tx.learn(newest_of_each(self._learned))
        self._kept_buckets.update(self._buckets)
        self._kept_rows.update(self._rows)
        for pending in (self._buckets, self._rows, self._learned, self._late, self._replaced):
            pending.clear()


class Joined(NamedTuple):
    """The result of a batch in buckets that were never seized: the newest row of each key, in key order."""

    rows: Sequence[Row]
    learned: Sequence[tuple[str, Served]]


def joined(records: Sequence[Record]) -> Joined:
    """Reduce a batch for an adapter that applies it in term 0 with one statement. Of several records of one key, only
    the highest version stays; the others count as old."""
    newest: dict[str, Record] = {}
    for record in records:
        before = newest.get(record.row.key)
        if is_newer(record, None if before is None else before.row):
            newest[record.row.key] = record
    rows = [newest[key].row for key in sorted(newest, key=str.encode)]
    return Joined(rows, newest_of_each((record.row.key, served) for record in records for served in record.served))


async def take(tx: Transaction, bulk: BulkRelease) -> Taken:
    """See `Transfers.take`."""
    # Most releases arrive twice, from the mover and by the log. A look without locks finds the old ones.
    seen = await tx.heads([one.key for one in bulk.entries], lock=False)
    entries = sorted(
        (one for one in bulk.entries if one.key not in seen or seen[one.key].version < one.version),
        key=lambda one: one.key.encode(),
    )
    old = len(bulk.entries) - len(entries)
    if not entries:
        return Taken(0, old, ())
    # Their terms must stay. Clients go on creating records in them.
    buckets = await tx.buckets(sorted({bucket_of(one.key) for one in entries}), shared=True)
    here = await tx.heads([one.key for one in entries], lock=True)
    named = [
        (one.key, version)
        for one in entries
        if one.requests and (head := here.get(one.key)) is not None
        for version in (*head.bases, head.version)
    ]
    known: dict[str, set[bytes]] = {}
    for key, served in await tx.served(named, answers=False):
        known.setdefault(key, set()).add(served.name)
    puts: list[PutHead] = []
    missing: list[BulkEntry] = []
    for one in entries:
        head = here.get(one.key)
        decided = decide_take(one, head, buckets[bucket_of(one.key)], tx.store, known.get(one.key, ()))
        if decided is Take.TAKE and head is not None:
            puts.append(PutHead(head._replace(version=one.version, owner=tx.store, digest=one.digest), head))
        elif decided is Take.FETCH:
            missing.append(one)
    if await tx.put_heads(puts, own=False):
        raise StartAgain
    return Taken(len(puts), old + len(entries) - len(puts) - len(missing), tuple(missing))


async def follow(tx: Transaction, records: Sequence[Record], step: FeedStep, by: Apply = apply) -> Applied:
    """Apply records of the log and move the feed in the same transaction. See `Transfers.apply`."""
    if not await tx.move(step.positions):
        raise UnknownPartition
    await tx.park(step.parked)
    if unauthenticated := sum(one.unauthenticated for one in step.parked):
        await tx.trim_unauthenticated(UNAUTHENTICATED_EVENTS, UNAUTHENTICATED_BYTES)
    applied, old = await by(tx, records)
    journaled = len(records) - applied - old
    await tx.count(step, Counts(applied + step.bulk, old + step.skipped, len(step.parked), journaled, unauthenticated))
    return Applied(applied, old)


async def unpark(tx: Transaction, partition: int, offset: int, record: Record, by: Apply = apply) -> Applied:
    """See `Feed.unpark`."""
    return await by(tx, [record]) if await tx.unpark(partition, offset) else Applied(0, 0)

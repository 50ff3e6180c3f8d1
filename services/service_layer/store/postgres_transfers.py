"""Moves of records and buckets, on PostgreSQL. Releases are in `postgres_release`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from libs.ownership.model import BucketOwner, Record, Store
from libs.store import engine_apply
from libs.store.engine_ports import EngineTransfers
from libs.store.port import Applied, FeedStep, Released
from libs.store.transaction import Lane, Transaction
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context, buckets_at
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_release import Releases
from services.service_layer.store.postgres_rows import bucket_owner_of, columnar, served_values
from services.service_layer.store.postgres_transaction import PostgresTransaction, PostgresTransactions

_RECORD_WIDTH = 16
_SERVED_WIDTH = 7


class PostgresTransfers(EngineTransfers):
    """`libs.store.port.Transfers`."""

    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        super().__init__(transactions, context.me)
        self._context = context
        self._releases = Releases(context, transactions)

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        return await self._releases.release(keys, to, create=create)

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        if step is not None:
            follow = partial(engine_apply.follow, records=records, step=step, by=apply)
            return await self._transactions.run(follow, Lane.FEED)
        if not records:
            return Applied(0, 0)
        # A client waits for this handoff, so save the round trips of a transaction: a single statement is atomic.
        applied = await self._context.requests.run(partial(_apply_in_term_0, self._context, records))
        if applied is None:
            return await self._transactions.run(partial(engine_apply.apply, records=records), Lane.COPY)
        self._context.written.notify()
        return applied

    async def bucket_owners(self, buckets: Sequence[int] = ()) -> list[BucketOwner]:
        async def work(connection: Connection) -> list[BucketOwner]:
            if buckets:
                return list((await buckets_at(connection, buckets)).values())
            return [bucket_owner_of(row) for row in await connection.fetch(sql.ALL_BUCKETS)]

        return await self._context.requests.run(work)


async def apply(tx: Transaction, records: Sequence[Record]) -> Applied:
    """`engine_apply.apply`, in one statement as long as no bucket was seized."""
    assert isinstance(tx, PostgresTransaction), "a transaction of this adapter"
    applied = await _apply_in_term_0(tx.context, records, tx.connection) if records else Applied(0, 0)
    if applied is None:
        return await engine_apply.apply(tx, records)
    tx.has_written = True
    return applied


async def _apply_in_term_0(context: Context, records: Sequence[Record], connection: Connection) -> Applied | None:
    """Apply the records in one statement. None, without a change, if a bucket or a record is in a later term than 0."""
    if any(record.row.version.term for record in records):
        return None
    rows, learned = engine_apply.joined(records)
    values = columnar([context.values(row) for row in rows], _RECORD_WIDTH)
    served = columnar([(key, *served_values(one)) for key, one in learned], _SERVED_WIDTH)
    applied = await connection.fetchval(sql.APPLY_WITH_SERVED, *values, *served)
    return None if applied == sql.SEIZED else Applied(applied, len(records) - applied)

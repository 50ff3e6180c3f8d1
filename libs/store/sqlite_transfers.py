"""Transfers of records and buckets on a store on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from libs.ownership.model import BucketOwner, Store
from libs.store.engine_ports import EngineTransfers
from libs.store.port import BulkReleased
from libs.store.sqlite_core import Core
from libs.store.sqlite_schema import BUCKET, bucket_owner_from
from libs.store.sqlite_transaction import SqliteTransactions


class SqliteTransfers(EngineTransfers):
    """`libs.store.port.Transfers`."""

    def __init__(self, core: Core, transactions: SqliteTransactions) -> None:
        super().__init__(transactions, core.store)
        self._core = core

    async def bucket_owners(self, buckets: Sequence[int] = ()) -> list[BucketOwner]:
        return await self._core.database.read(partial(_bucket_owners, buckets))

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> list[BucketOwner]:
        # The other store gets every row of a bucket before it adopts the bucket.
        self._core.check_complete("a move of a bucket")
        return await super().release_buckets(buckets, to)

    async def release_bulk(self, buckets: Sequence[int], to: Store, after: str = "") -> BulkReleased:
        self._core.check_complete("a bulk release")
        return await super().release_bulk(buckets, to, after)

    async def adopt_buckets(
        self, bucket_owners: Sequence[BucketOwner], *, despite_conflicts: bool = False
    ) -> list[tuple[bool, BucketOwner]]:
        if any(one.term for one in bucket_owners):
            # An old row of the bucket may be of a lower term.
            self._core.check_complete("a move of a bucket after a seizure")
        return await super().adopt_buckets(bucket_owners, despite_conflicts=despite_conflicts)


def _bucket_owners(buckets: Sequence[int], connection: sqlite3.Connection) -> list[BucketOwner]:
    some = f"WHERE b.bucket IN ({', '.join('?' for _ in buckets)})" if buckets else ""
    found = connection.execute(f"SELECT {BUCKET} FROM bucket b {some} ORDER BY b.bucket", tuple(buckets))
    return [bucket_owner_from(values) for values in found]

"""Moving records and buckets on a store on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from libs.ownership.model import Absence, Store
from libs.store.engine_ports import EngineTransfers
from libs.store.sqlite_core import Core
from libs.store.sqlite_schema import BUCKET, absence_from
from libs.store.sqlite_transaction import SqliteTransactions


class SqliteTransfers(EngineTransfers):
    """`libs.store.port.Transfers`."""

    def __init__(self, core: Core, transactions: SqliteTransactions) -> None:
        super().__init__(transactions, core.store)
        self._core = core

    async def absences(self, buckets: Sequence[int] = ()) -> list[Absence]:
        return await self._core.database.read(partial(_absences, buckets))

    async def release_absence(self, bucket: int, to: Store) -> Absence:
        # The other store is given every row of the bucket before it adopts it.
        self._core.check_complete("a move of a bucket")
        return await super().release_absence(bucket, to)

    async def adopt_absence(self, absence: Absence, *, despite_conflicts: bool = False) -> tuple[bool, Absence]:
        if absence.term:
            # The bucket may have rows of a lower term.
            self._core.check_complete("a move of a bucket after a seizure")
        return await super().adopt_absence(absence, despite_conflicts=despite_conflicts)


def _absences(buckets: Sequence[int], connection: sqlite3.Connection) -> list[Absence]:
    some = f"WHERE b.bucket IN ({', '.join('?' for _ in buckets)})" if buckets else ""
    found = connection.execute(f"SELECT {BUCKET} FROM bucket b {some} ORDER BY b.bucket", tuple(buckets))
    return [absence_from(values) for values in found]

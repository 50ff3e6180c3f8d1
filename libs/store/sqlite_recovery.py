"""Detection of the loss of a store on SQLite, and its recovery."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from libs.ownership.model import Version
from libs.ownership.orders import order_of, order_text
from libs.store.engine_ports import EngineRecovery, EngineSeizures
from libs.store.recovery import Conflict, FencedAt, Identity, Standing, Why
from libs.store.sqlite_core import Core
from libs.store.transaction import Transactions

RECOVERY_TABLES = (
    # The id is made with the file: a copy of the file has the same id, a new file has another one.
    "CREATE TABLE standing (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, changes INTEGER NOT NULL,"
    " gone TEXT NOT NULL, other_place TEXT, other_changes INTEGER)",
    "INSERT INTO standing VALUES (1, lower(hex(randomblob(16))), 0, '', NULL, NULL)",
    "CREATE TABLE conflict (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, key TEXT NOT NULL, term INTEGER NOT NULL,"
    " revision INTEGER NOT NULL, why TEXT NOT NULL, event BLOB NOT NULL, resolution TEXT NOT NULL DEFAULT '',"
    " UNIQUE (key, term, revision))",
    "CREATE INDEX conflict_open ON conflict (bucket) WHERE resolution = ''",
    # Usually empty. Apply reads it before each batch.
    "CREATE INDEX bucket_seized ON bucket (bucket) WHERE term > 0",
)
ORDER_COLUMNS = (
    "ALTER TABLE standing ADD COLUMN recovery_order TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE standing ADD COLUMN fenced_at TEXT NOT NULL DEFAULT ''",
)
JOURNAL = (
    "INSERT INTO conflict (bucket, key, term, revision, why, event) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


class SqliteRecovery(EngineRecovery):
    """`libs.store.recovery.Recovery`."""

    def __init__(self, core: Core, transactions: Transactions) -> None:
        super().__init__(transactions)
        self._core = core

    async def standing(self) -> Standing:
        return await self._core.database.read(standing_of)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        await self._core.database.write(partial(_skip_to, next_offsets.items()), background=True)


def standing_of(connection: sqlite3.Connection) -> Standing:
    database, changes, fence_reason, other_database, other_changes, order, fenced_at, conflicts = connection.execute(
        "SELECT id, changes, gone, other_place, other_changes, recovery_order, fenced_at,"
        " (SELECT count(*) FROM conflict WHERE resolution = '') FROM standing"
    ).fetchone()
    other = None if other_database is None else Identity(other_database, other_changes)
    now = Identity(database, changes)
    return Standing(now, database, fence_reason, other, conflicts, order_of(order), FencedAt.decode(fenced_at))


def put_standing(connection: sqlite3.Connection, standing: Standing) -> None:
    """Store the standing without `opened_at`: the file has no database id but its own."""
    order, fenced_at = order_text(standing.order), standing.fenced_at.encode() if standing.fenced_at else ""
    connection.execute(
        "UPDATE standing SET gone = ?, other_place = ?, other_changes = ?, recovery_order = ?, fenced_at = ?",
        (standing.fence_reason, *(standing.other or (None, None)), order, fenced_at),
    )


def _skip_to(offsets: Iterable[tuple[int, int]], connection: sqlite3.Connection) -> None:
    connection.executemany(
        "INSERT INTO progress (part, next) VALUES (?, ?) ON CONFLICT DO UPDATE"
        " SET next = excluded.next, mark = '' WHERE excluded.next > next",
        list(offsets),
    )


class SqliteSeizures(EngineSeizures):
    """`libs.store.recovery.Seizures`."""

    def __init__(self, core: Core, transactions: Transactions) -> None:
        super().__init__(transactions)
        self._core = core

    async def conflicts(self, limit: int) -> list[Conflict]:
        return await self._core.database.read(partial(_conflicts, limit))

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        found = await self._core.database.read(_disputed)
        return found.intersection(buckets) if buckets else found

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        statement = (
            "UPDATE conflict SET resolution = ? WHERE key = ? AND term = ? AND revision = ?"
            " AND resolution = '' AND ? <> ''"
        )

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute(statement, (resolution, key, *version, resolution)).rowcount == 1

        return await self._core.database.write(work)


def _disputed(connection: sqlite3.Connection) -> set[int]:
    return {bucket for (bucket,) in connection.execute("SELECT DISTINCT bucket FROM conflict WHERE resolution = ''")}


def _conflicts(limit: int, connection: sqlite3.Connection) -> list[Conflict]:
    found = connection.execute(
        "SELECT key, term, revision, why, event, resolution FROM conflict ORDER BY resolution <> '', id LIMIT ?",
        (limit,),
    )
    return [
        Conflict(key, Version(term, revision), Why(why), event, resolution)
        for key, term, revision, why, event, resolution in found
    ]

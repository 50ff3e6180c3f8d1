"""Databases that an earlier release has left: their seizures are not forgotten."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
from alembic import command
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from libs.clock import SystemClock
from libs.ownership.model import Store, bucket_of
from libs.store.inspection import Missing
from libs.store.port import StorePorts
from services.service_layer.store import embedded, postgres_schema
from services.service_layer.store.postgres import open_store
from services.service_layer.store.postgres_pool import normalised
from services.service_layer.store.postgres_schema import migrate
from tests.contracts.store_adapters import record_of, row_of

KEY = "sandboxes/seized"
UNGUARDED = (
    "DROP TRIGGER record_counted",
    "DROP TRIGGER record_bucketed",
    "DROP TRIGGER record_removed",
    "DROP TRIGGER served_delete",
    "DROP TRIGGER bucket_delete",
    "DROP TABLE row_count",
    "DROP TABLE removal",
    "DROP TABLE aside",
    "DROP TRIGGER record_delete",
    "CREATE TRIGGER record_delete BEFORE DELETE ON record BEGIN SELECT RAISE(ABORT, 'record: never'); END",
    "ALTER TABLE progress DROP COLUMN mark",
    "ALTER TABLE standing DROP COLUMN recovery_order",
    "ALTER TABLE standing DROP COLUMN fenced_at",
    "ALTER TABLE parked DROP COLUMN unauthenticated",
    "DROP TABLE checked_from",
    "DELETE FROM counter WHERE name = 'unauthenticated'",
    "PRAGMA user_version = 6",
)
EARLIER = (
    *UNGUARDED,
    "ALTER TABLE parked DROP COLUMN headers",
    "ALTER TABLE parked DROP COLUMN topic",
    "ALTER TABLE record ADD COLUMN base_term INTEGER",
    "ALTER TABLE record ADD COLUMN base_revision INTEGER",
    "ALTER TABLE record DROP COLUMN bases",
    "DROP TRIGGER record_version",
    "UPDATE record SET base_term = 0, base_revision = 3",
    "CREATE TRIGGER record_version BEFORE UPDATE ON record BEGIN SELECT RAISE(ABORT, 'as it was'); END",
    "PRAGMA user_version = 4",
)


async def keep_one(store: StorePorts) -> None:
    await store.transfers.apply([record_of(row_of(KEY, (0, 4), Store.A, "theirs"))])


async def downgraded(dsn: str, version: str) -> None:
    """Leave the database as a release with that schema made it."""

    def change(connection: Connection) -> None:
        config = postgres_schema._config()
        config.attributes["connection"] = connection
        command.downgrade(config, version)

    engine = create_async_engine(normalised(dsn))
    async with engine.begin() as connection:
        await connection.run_sync(change)
    await engine.dispose()


async def bases_in(store: StorePorts) -> object:
    found = (await store.records.read(KEY)).row
    assert found is not None
    return found.bases


async def test_a_file_with_one_base_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with embedded.open_store(path, SystemClock()) as store:
        await keep_one(store)
    with closing(sqlite3.connect(path)) as connection:
        for statement in EARLIER:
            connection.execute(statement)
        connection.commit()
    async with embedded.open_store(path, SystemClock()) as store:
        assert await bases_in(store) == ((0, 3),)
    with closing(sqlite3.connect(path)) as connection:
        kept = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'record_version'").fetchone()
    assert "as it was" in kept[0], "the guard is there again"


async def test_rows_of_a_file_without_counts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with embedded.open_store(path, SystemClock()) as store:
        await keep_one(store)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(UNGUARDED))
    async with embedded.open_store(path, SystemClock()) as store:
        assert await store.inspection.missing() == []
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("DROP TRIGGER record_delete; DROP TRIGGER record_removed; DELETE FROM record")
        assert await store.inspection.missing() == [Missing(bucket_of(KEY), 1, 0)]


async def test_rows_of_a_postgresql_without_counts_are_counted(postgres_dsn: str) -> None:
    async with open_store(postgres_dsn) as store:
        await keep_one(store)
        await downgraded(postgres_dsn, "0007")
    connection = await asyncpg.connect(postgres_dsn)
    async with open_store(postgres_dsn) as store:
        assert await store.inspection.missing() == []
        await connection.execute("SET session_replication_role = replica; DELETE FROM record")
        assert await store.inspection.missing() == [Missing(bucket_of(KEY), 1, 0)]
    await connection.close()


async def test_a_postgresql_with_one_base_keeps_it(postgres_dsn: str) -> None:
    await migrate(postgres_dsn)
    await downgraded(postgres_dsn, "0005")
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        "INSERT INTO record (key, bucket, term, revision, owner, write_term, write_revision, live, schema_version,"
        " base_term, base_revision, digest, payload, labels)"
        " VALUES ($1, $2, 0, 4, 'A', 0, 4, true, 1, 0, 3, 5, 'theirs', '{}')",
        KEY,
        bucket_of(KEY),
    )
    await migrate(postgres_dsn)
    async with open_store(postgres_dsn) as store:
        assert await bases_in(store) == ((0, 3),)
    await downgraded(postgres_dsn, "0005")
    assert tuple(await connection.fetchrow("SELECT base_term, base_revision FROM record")) == (0, 3)
    await connection.close()

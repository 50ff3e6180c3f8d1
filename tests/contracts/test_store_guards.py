"""Rows do not vanish: a database refuses to remove them, and a store whose rows are lost all the same knows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import BucketOwner, bucket_of
from libs.ownership.terms import next_term
from libs.store.inspection import Missing
from libs.store.memory import MemoryStore
from libs.store.port import StorePorts
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import SQLITE_A, Adapter, own, put, record_of, row_of, served_of

KEYS = [f"sandboxes/{number}" for number in range(12)]
KEY = KEYS[0]

Execute = Callable[[str], Awaitable[None]]


@pytest.fixture
def table(adapter: Adapter) -> str:
    return "sandboxes" if adapter is SQLITE_A else "record"


@pytest.fixture
def execute(adapter: Adapter, tmp_path: Path, request: pytest.FixtureRequest) -> Execute:
    """Another program on the store's database. Raises the driver's error."""
    if adapter.postgres:
        dsn = request.getfixturevalue("store_dsn")

        async def in_postgres(statement: str) -> None:
            connection = await asyncpg.connect(dsn)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        return in_postgres

    async def in_sqlite(statement: str) -> None:
        with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
            connection.executescript(statement)

    return in_sqlite


async def filled(store: StorePorts) -> None:
    await own(store, KEYS)
    for key in KEYS:
        await put(store, key, "r1", "one")


async def lose(store: StorePorts, execute: Execute, table: str, key: str = KEY) -> None:
    """A row goes, past every guard: as by a restored table, or by a disk."""
    if isinstance(store, MemoryStore):
        del store._state.rows[key]
    elif table == "record" and store.backend.startswith("postgresql"):
        await execute(f"SET session_replication_role = replica; DELETE FROM record WHERE key = '{key}'")
    else:
        drop = f"DROP TRIGGER {table}_delete; DROP TRIGGER {table}_removed; DELETE FROM {table} WHERE key = '{key}'"
        await execute(drop)


@pytest.mark.parametrize("of", ["{table}", "bucket", "served"])
@pytest.mark.parametrize("how", ["DELETE FROM {of}", "DELETE FROM {of} WHERE {one}", "TRUNCATE {of}"])
async def test_another_program_removes_no_row(
    store: StorePorts, adapter: Adapter, execute: Execute, table: str, of: str, how: str
) -> None:
    if isinstance(store, MemoryStore) or (adapter.sqlite and "TRUNCATE" in how):
        pytest.skip("memory has no other program, SQLite no TRUNCATE")
    await filled(store)
    one = f"bucket = {bucket_of(KEY)}" if of == "bucket" else f"key = '{KEY}'"
    statement = how.format(of=of.format(table=table), one=one)
    with pytest.raises((sqlite3.IntegrityError, asyncpg.PostgresError), match=r"never (deleted|removed)"):
        await execute(statement)
    assert (await store.inspection.census()).records == len(KEYS)
    assert len(await store.transfers.bucket_owners()) == 1024


async def test_rows_that_come_by_the_protocol_are_counted(store: StorePorts) -> None:
    await filled(store)
    await put(store, KEY, "r2", "two")
    await store.transfers.apply(
        [record_of(row_of(key, (0, 1), store.store.other)) for key in ("sandboxes/x", "sandboxes/y", KEY)]
    )
    await store.transfers.apply([record_of(row_of("sandboxes/x", (0, 2), store.store.other))])
    await store.transfers.release([KEY], store.store.other, create=False)
    assert await store.inspection.missing() == []


async def test_a_row_that_is_lost_is_missed_in_its_bucket(store: StorePorts, execute: Execute, table: str) -> None:
    await filled(store)
    in_bucket = sum(bucket_of(key) == bucket_of(KEY) for key in KEYS)
    await lose(store, execute, table)
    lost = [Missing(bucket_of(KEY), in_bucket, in_bucket - 1)]
    assert await store.inspection.missing() == lost
    assert await store.inspection.missing([bucket_of(KEY)]) == lost
    assert await store.inspection.missing([one for one in range(1024) if one != bucket_of(KEY)]) == []


async def test_what_is_lost_is_missed_by_the_next_process(make_store: MakeStore, execute: Execute, table: str) -> None:
    async with make_store() as store:
        if isinstance(store, MemoryStore):
            pytest.skip("nothing of it survives the process")
        await filled(store)
        await lose(store, execute, table)
    async with make_store() as store:
        assert [one.bucket for one in await store.inspection.missing()] == [bucket_of(KEY)]


async def test_settled_rows_are_not_missed(store: StorePorts) -> None:
    term = next_term(0, store.store.other)
    await store.transfers.apply([record_of(row_of(KEY, (0, 3), store.store.other), served_of("r1", (0, 3)))])
    await store.recovery.fence("lost")
    await store.seizures.take_terms([BucketOwner(bucket_of(KEY), term, 9, store.store.other)])
    assert await store.seizures.settle(10) == 1
    assert await store.inspection.missing() == []
    assert (await store.inspection.census()).records == 0


async def test_a_recovery_counts_what_it_has_brought_back(store: StorePorts, execute: Execute, table: str) -> None:
    await filled(store)
    await lose(store, execute, table)
    await store.recovery.fence("rows are missing")
    assert await store.inspection.missing() != []
    await store.transfers.apply([record_of(row_of(KEY, (0, 1), store.store.other))])
    await store.recovery.reopen()
    assert await store.inspection.missing() == []
    await put(store, KEYS[1], "r9", "after")
    assert await store.inspection.missing() == []


async def test_requests_are_pruned_all_the_same(store: StorePorts) -> None:
    await filled(store)
    await store.upkeep.tick(RETRY_WINDOW_SECONDS + 1)
    assert await store.upkeep.prune() == len(KEYS)

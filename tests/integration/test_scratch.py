"""Trying records out in an empty store beside the real one, which notices nothing and finds nothing left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from libs.backend.audit import ScratchStore
from libs.clock import ManualClock
from libs.errors import Overloaded, StoreUnavailable
from libs.ownership.model import Record, Store
from services.service_layer.store import embedded, postgres
from services.service_layer.store.postgres_scratch import LOCK, SCHEMA, NoScratch, open_scratch
from tests.contracts.store_adapters import record_of, row_of

CLOCK = ManualClock()
END_GUARD = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1::bigint::oid"


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def is_there(dsn: str) -> bool:
    async with connected(dsn) as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", SCHEMA))


def records() -> list[Record]:
    keys = ("sandboxes/one", "sandboxes/ünï", "sandboxes/two")
    return [record_of(row_of(key, (0, 3), Store.A, label="k:v", written="0-2")) for key in keys]


async def test_records_are_tried_out_beside_a_real_store_that_notices_nothing(postgres_dsn: str) -> None:
    async with postgres.open_store(postgres_dsn, CLOCK) as real:
        for _ in range(2):
            async with open_scratch(postgres_dsn, CLOCK) as scratch:
                assert await scratch.transfers.apply(records()) == (3, 0)
                found = await scratch.records.read_many([record.row.key for record in records()])
                assert [one.row for one in found] == [record.row for record in records()]
                assert await is_there(postgres_dsn)
            assert not await is_there(postgres_dsn)
        assert (await real.inspection.census()).records == 0


async def fail_in(opened: AbstractAsyncContextManager[ScratchStore]) -> None:
    """Tries records out, and then something goes wrong."""
    async with opened as scratch:
        assert await scratch.transfers.apply(records()) == (3, 0)
        raise ZeroDivisionError


async def test_a_trial_that_fails_leaves_nothing(postgres_dsn: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await fail_in(open_scratch(postgres_dsn, CLOCK))
    assert not await is_there(postgres_dsn)


async def lose_the_guard(dsn: str) -> None:
    """End the session that holds the lock and keep the schema, as a kill does."""
    async with open_scratch(dsn, CLOCK) as scratch, connected(dsn) as connection:
        await scratch.transfers.apply(records())
        assert await connection.fetchval(END_GUARD, LOCK & 0xFFFF_FFFF)


async def test_what_a_killed_process_left_is_dropped_before_the_next_trial(postgres_dsn: str) -> None:
    with pytest.raises(StoreUnavailable, match="the next trial drops it"):
        await lose_the_guard(postgres_dsn)
    assert await is_there(postgres_dsn)
    async with open_scratch(postgres_dsn, CLOCK) as again:
        assert await again.transfers.apply(records()) == (3, 0)
    assert not await is_there(postgres_dsn)


async def test_one_trial_at_a_time_uses_the_place(postgres_dsn: str) -> None:
    async with open_scratch(postgres_dsn, CLOCK) as first:
        with pytest.raises(Overloaded):
            async with open_scratch(postgres_dsn, CLOCK):
                pass
        assert await first.transfers.apply(records()) == (3, 0)


async def test_a_schema_that_somebody_else_has_made_is_left_alone(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as connection:
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
        with pytest.raises(NoScratch, match="rename it"):
            async with open_scratch(postgres_dsn, CLOCK):
                pass
    assert await is_there(postgres_dsn)


async def test_a_user_who_may_make_no_schema_is_told_which_right_is_missing(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as connection:
        await connection.execute("DROP ROLE IF EXISTS poor; CREATE ROLE poor LOGIN")
    head, _, tail = postgres_dsn.partition("@")
    with pytest.raises(NoScratch, match="GRANT CREATE ON DATABASE"):
        async with open_scratch(f"postgresql://poor@{tail}" if head else postgres_dsn, CLOCK):
            pass
    async with connected(postgres_dsn) as connection:
        await connection.execute("DROP ROLE poor")


async def test_an_embedded_store_tries_out_in_a_file_beside_it_and_removes_that(tmp_path: Path) -> None:
    place = tmp_path / "b.db"
    (tmp_path / "b.db.scratch").write_bytes(b"left by a kill")
    with pytest.raises(ZeroDivisionError):
        await fail_in(embedded.open_scratch(place, CLOCK))
    assert os.listdir(tmp_path) == []

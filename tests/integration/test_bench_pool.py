"""`baton bench pool` on a real PostgreSQL: it measures, takes no more than is free, and leaves nothing."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
from typer.testing import CliRunner

from libs.proving.pools.sweep import LOCK, MARK, SCHEMA, BenchFailed, Plan, look, sweep
from libs.proving.servers.postgres import Postgres
from services.router.cli.app import tree
from services.router.cli.failure import Exit
from tests.waiting import eventually

QUICK = Plan((1, 3), callers=8, turn_seconds=0.1, turns=1, records=50)
runner = CliRunner()
app = tree()


def quick(dsn: str, *more: str) -> list[str]:
    return ["bench", "pool", "--database", dsn, "--seconds", "0.1", "--turns", "1", "--callers", "8", *more]


def ignored(done: int, total: int) -> None:
    """Ignore the progress."""


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close(timeout=5)


async def has_schema(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", SCHEMA)
    await connection.close(timeout=5)
    return bool(found)


def test_a_bench_tells_the_curve_and_its_knee_and_leaves_nothing(postgres_dsn: str) -> None:
    result = runner.invoke(app, quick(postgres_dsn, "--sizes", "1,2,4", "--yes", "-o", "json", "--processes", "1000"))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [point["size"] for point in found["points"]] == [1, 2, 4]
    assert all(point["calls_per_second"] > 0 and point["p99_ms"] >= point["p50_ms"] > 0 for point in found["points"])
    assert found["knee"] in (1, 2, 4) and found["best"] in (1, 2, 4)
    connections = found["connections"]
    assert connections == {
        "per_process": found["knee"] + 9,
        "processes": 1000,
        "allowed": found["allowed"],
        "fits": False,
    }
    assert not asyncio.run(has_schema(postgres_dsn))


def test_a_bench_is_not_begun_unless_somebody_agrees(postgres_dsn: str) -> None:
    asked = runner.invoke(app, quick(postgres_dsn))
    assert asked.exit_code == Exit.USAGE and "add --yes" in asked.stderr
    dry = runner.invoke(app, quick(postgres_dsn, "--dry-run", "--sizes", "3", "-o", "json"))
    planned = json.loads(dry.stdout)
    assert (dry.exit_code, planned["sizes"]) == (0, [3])
    assert any(f"schema {SCHEMA} is created" in effect for effect in planned["effects"])


def test_a_bench_takes_no_connections_that_are_not_free(postgres: Postgres, postgres_dsn: str) -> None:
    name = postgres_dsn.rsplit("/", 1)[1]
    in_use = asyncio.run(look(postgres_dsn)).in_use
    postgres.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT {in_use + 8}')
    assert asyncio.run(look(postgres_dsn)).free <= 4
    result = runner.invoke(app, quick(postgres_dsn, "--sizes", "2,5", "--yes"))
    assert result.exit_code == Exit.USAGE and "5 is too many" in result.stderr
    postgres.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    result = runner.invoke(app, quick(postgres_dsn, "--yes"))
    assert result.exit_code == Exit.FAILED and "0 connections are free" in result.stderr


def test_a_server_that_is_not_there_is_said(postgres_dsn: str) -> None:
    for wrong in ("postgresql://postgres@127.0.0.1:1/nowhere", "nonsense", f"{postgres_dsn}_of_nobody"):
        result = runner.invoke(app, quick(wrong, "--yes"))
        assert result.exit_code == Exit.FAILED and result.stderr.startswith("baton: PostgreSQL: "), result.stderr


async def test_an_interrupted_bench_leaves_nothing(postgres_dsn: str) -> None:
    turns = 0

    def progress(done: int, total: int) -> None:
        nonlocal turns
        turns = done

    plan = Plan((2, 3), callers=8, turn_seconds=0.1, turns=500, records=50)
    task = asyncio.create_task(sweep(postgres_dsn, plan, progress))
    await eventually(lambda: turns > 0, what="it measures")
    assert await has_schema(postgres_dsn)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await has_schema(postgres_dsn)


async def test_a_connection_that_is_lost_ends_the_bench_and_leaves_nothing(postgres_dsn: str) -> None:
    lost = asyncio.Event()

    def progress(done: int, total: int) -> None:
        lost.set()

    async def lose() -> None:
        await lost.wait()
        await execute(
            postgres_dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND query LIKE '%{SCHEMA}.%' AND query NOT LIKE '%TRUNCATE%'"
            " AND pid <> pg_backend_pid()",
        )

    losing = asyncio.create_task(lose())
    plan = Plan((2, 3), callers=8, turn_seconds=0.1, turns=500, records=50)
    with pytest.raises(BenchFailed):
        await sweep(postgres_dsn, plan, progress)
    await losing
    assert not await has_schema(postgres_dsn)


async def test_one_bench_at_a_time_runs_in_a_database(postgres_dsn: str) -> None:
    other = await asyncpg.connect(postgres_dsn)
    await other.execute(f"SELECT pg_advisory_lock({LOCK})")
    with pytest.raises(BenchFailed, match="another bench"):
        await sweep(postgres_dsn, QUICK, ignored)
    await other.close(timeout=5)
    assert len(await sweep(postgres_dsn, QUICK, ignored)) == 2


async def test_what_a_killed_bench_left_is_dropped_and_a_schema_of_somebody_else_is_not(postgres_dsn: str) -> None:
    await execute(postgres_dsn, f"CREATE SCHEMA {SCHEMA}; CREATE TABLE {SCHEMA}.record (n integer)")
    with pytest.raises(BenchFailed, match="was not made by a bench"):
        await sweep(postgres_dsn, QUICK, ignored)
    assert await has_schema(postgres_dsn)
    await execute(postgres_dsn, f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
    assert len(await sweep(postgres_dsn, QUICK, ignored)) == 2
    assert not await has_schema(postgres_dsn)


async def test_a_user_who_may_make_no_schema_is_told_what_is_missing(postgres: Postgres, postgres_dsn: str) -> None:
    postgres.execute("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    with pytest.raises(BenchFailed, match="GRANT CREATE ON DATABASE"):
        await sweep(postgres_dsn.replace("postgres@", "guest@"), QUICK, ignored)

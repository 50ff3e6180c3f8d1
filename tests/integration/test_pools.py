"""The pools of the PostgreSQL store: each for its own kind of work, none larger than said, a full one refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from libs.errors import Overloaded
from libs.pb.baton.replication.v1.replication_pb2 import GetStatusRequest
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.proving.servers.postgres import Postgres
from libs.rpc.errors import reason_of
from libs.store.connections import ALLOWED, Connections, per_process
from libs.store.inspection import ExportQuery
from services.service_layer.store.postgres import PoolSettings, PostgresOptions, PostgresStore, open_store
from services.service_layer.store.postgres_pool import Pool
from tests.contracts.store_adapters import own, put
from tests.integration.processes import running
from tests.waiting import eventually

KEY = "sandboxes/k"
SMALL = PostgresOptions(pools=PoolSettings(request_pool=2, apply_pool=2, control_pool=1, pool_timeout_seconds=0.2))
KINDS: dict[str, list[Callable[[PostgresStore], Awaitable[object]]]] = {
    "requests": [lambda store: store.records.read(KEY), lambda store: put(store, KEY, str(uuid4()), "word")],
    "apply": [lambda store: store.outbox.pull(1, 0), lambda store: store.upkeep.prune()],
    "control": [
        lambda store: store.feed.state(),
        lambda store: store.inspection.census(),
        lambda store: store.inspection.digests(),
        lambda store: store.inspection.export(ExportQuery()),
    ],
}
"""Work of each pool."""
CALLS = 100
BOUND_SECONDS = 30.0


@asynccontextmanager
async def taken(*pools: Pool) -> AsyncIterator[None]:
    """All their connections are in use."""
    done, held = asyncio.Event(), []

    async def hold(connection: Any) -> None:
        held.append(connection)
        await done.wait()

    sizes = [int(pool.engine.pool.size()) for pool in pools]  # type: ignore[attr-defined]
    tasks = [
        asyncio.ensure_future(pool.run(hold)) for pool, size in zip(pools, sizes, strict=True) for _ in range(size)
    ]
    try:
        await eventually(lambda: [pool.in_use for pool in pools] == sizes, what="the pools are full")
        # A connection counts as in use before it is there.
        await eventually(lambda: len(held) == sum(sizes), what="the connections are there")
        yield
    finally:
        done.set()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def table_locked(dsn: str) -> AsyncIterator[None]:
    """No read of a record can proceed."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN; LOCK TABLE record")
        yield
        await connection.execute("ROLLBACK")
    finally:
        await connection.close(timeout=5)


@pytest.mark.parametrize("full", KINDS)
async def test_a_full_pool_refuses_its_own_work_and_leaves_the_others_theirs(full: str, store_dsn: str) -> None:
    async with open_store(store_dsn, options=SMALL) as store, asyncio.timeout(BOUND_SECONDS):
        await own(store, [KEY])
        async with taken(getattr(store, full)):
            for kind, works in KINDS.items():
                for work in works:
                    if kind != full:
                        await work(store)
                        continue
                    with pytest.raises(Overloaded):
                        await work(store)
        for work in KINDS[full]:
            await work(store)


async def test_a_process_has_no_more_connections_than_it_says(store_dsn: str) -> None:
    async with open_store(store_dsn, options=SMALL) as store, AsyncExitStack() as stack:
        await store.feed.claim(16)
        await store.outbox.depth()
        await stack.enter_async_context(taken(store.requests, store.apply, store.control))
        connection = await asyncpg.connect(store_dsn)
        counted = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await connection.close(timeout=5)
        assert counted == SMALL.pools.connections == per_process(2, 2, 1) == 7


async def test_a_store_tells_what_its_processes_take_of_what_the_server_allows(
    postgres: Postgres, store_dsn: str
) -> None:
    async with AsyncExitStack() as stack:
        found: list[Connections | None] = []
        for _ in range(3):
            store = await stack.enter_async_context(open_store(store_dsn, options=SMALL))
            await store.feed.claim(16)
            found.append(await store.inspection.connections())
        connection = await asyncpg.connect(store_dsn)
        stack.push_async_callback(connection.close, timeout=5)
        limit, reserved = (
            f"current_setting('{name}')::int" for name in ("max_connections", "superuser_reserved_connections")
        )
        allowed = await connection.fetchval(f"SELECT {limit} - {reserved}")
        assert found == [Connections(7, processes, allowed) for processes in (1, 2, 3)]
        name = store_dsn.rsplit("/", 1)[1]
        postgres.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 17')
        assert await connection.fetchval(ALLOWED) == 17
        postgres.execute("DROP ROLE IF EXISTS few; CREATE ROLE few LOGIN CONNECTION LIMIT 5")
        await connection.execute("SET ROLE few")
        assert await connection.fetchval(ALLOWED) == 5


async def test_a_process_without_free_connections_refuses_instead_of_letting_calls_pile_up(store_dsn: str) -> None:
    request = pb.GetSandboxRequest(name=KEY)
    async with (
        running("service_layer", database=store_dsn, event_log="memory:", request_pool=1) as service,
        asyncio.timeout(BOUND_SECONDS),
    ):

        async def reason() -> str:
            try:
                await service.client.GetSandbox(request)
            except grpc.aio.AioRpcError as error:
                return reason_of(error)[0]
            return "OK"

        await reason()
        async with table_locked(store_dsn):
            reasons = await asyncio.gather(*(reason() for _ in range(CALLS)))
        assert reasons.count("OVERLOADED") > CALLS // 2, "few may wait"
        assert set(reasons) <= {"OVERLOADED", "LOCK_TIMEOUT"}, "none waits until its deadline"
        assert await reason() not in ("OVERLOADED", "LOCK_TIMEOUT")
        status = await service.replication.GetStatus(GetStatusRequest())
        assert status.connections.per_process == per_process(1), "what the doctor looks at"


def test_the_size_of_a_pool_follows_from_the_cores_of_the_database() -> None:
    assert Connections(per_process(17), 3, 78).fits
    assert not Connections(per_process(17), 3, 77).fits
    assert str(Connections(25, 4, 97)) == "4 processes × 25 connections = 100, the server allows 97"

"""Connections of the PostgreSQL store: sessions commit durably; none goes back to its pool inside a transaction."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import asyncpg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import TimeoutError as PoolTimeout

from libs.backend.serving import Serving
from libs.backend.signals import measure_store
from libs.errors import Overloaded, StoreUnavailable
from libs.proving.servers.postgres import Postgres
from services.service_layer.store.postgres import PoolSettings, PostgresOptions, PostgresStore, open_store
from tests.documents import blocks
from tests.waiting import eventually

ONE = PostgresOptions(pools=PoolSettings(request_pool=1, apply_pool=1, control_pool=1))


async def in_database(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def settings_of(store: PostgresStore) -> set[tuple[str, str]]:
    async def work(connection: Any) -> tuple[str, str]:
        shown = await connection.fetchval("SHOW synchronous_commit")
        return shown, await connection.fetchval("SHOW default_transaction_isolation")

    return {await pool.run(work) for pool in (store.requests, store.apply, store.control)}


async def test_a_weak_default_of_the_database_weakens_no_session(store_dsn: str) -> None:
    """The default changes after the start, which refuses it: a session that is opened later must not take it over."""
    async with open_store(store_dsn, options=ONE) as store:
        name = await in_database(store_dsn, "SELECT quote_ident(current_database())")
        for setting, weak in (("synchronous_commit", "off"), ("default_transaction_isolation", "serializable")):
            await in_database(store_dsn, f"ALTER DATABASE {name} SET {setting} = '{weak}'")
        assert await in_database(store_dsn, "SHOW synchronous_commit") == "off", "the default is in force"
        for pool in (store.requests, store.apply, store.control):
            await pool.engine.dispose()
        assert await settings_of(store) == {("on", "read committed")}


async def test_the_runbook_finds_the_session_that_holds_a_lock(store_dsn: str) -> None:
    (query,) = [block.code for block in blocks("docs/runbooks/b-slow.md") if block.kind == "sql"]
    holder, waiter = await asyncpg.connect(store_dsn), await asyncpg.connect(store_dsn)
    try:
        await holder.execute("SELECT pg_advisory_lock(7)")
        assert await in_database(store_dsn, query) is None
        waiting = asyncio.create_task(waiter.execute("SELECT pg_advisory_lock(7)"))
        pid = holder.get_server_pid()

        async def found() -> bool:
            return bool(await in_database(store_dsn, query) == pid)

        await eventually(found)
        await in_database(store_dsn, f"SELECT pg_terminate_backend({pid})")
        await waiting
    finally:
        for connection in (holder, waiter):
            connection.terminate()


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_connection_inside_a_transaction_does_not_go_back_to_the_pool(store_dsn: str, ends: str) -> None:
    """The next user's change would be part of a transaction that never commits."""

    async def leaves_a_transaction(connection: Any) -> int:
        await connection.execute("BEGIN; UPDATE tick SET now = now + 1000")
        if ends == "raises":
            raise ValueError
        return int(await connection.fetchval("SELECT pg_backend_pid()"))

    async def next_user(connection: Any) -> bool:
        await connection.execute("UPDATE tick SET now = now + 1")
        return bool(connection.is_in_transaction())

    async with open_store(store_dsn, options=ONE) as store:
        before = await in_database(store_dsn, "SELECT now FROM tick")
        try:
            await store.requests.run(leaves_a_transaction)
        except ValueError:
            assert ends == "raises"
        assert await store.requests.run(next_user) is False
        assert await in_database(store_dsn, "SELECT now FROM tick") == before + 1, "committed, and nothing else"


async def test_calls_that_wait_for_a_connection_to_be_made_find_the_store_unavailable(
    postgres: Postgres, store_dsn: str
) -> None:
    """Not overloaded: a router waits for a store that is unavailable, as while its database restarts."""

    async def asks(connection: Any) -> int:
        return int(await connection.fetchval("SELECT 1"))

    async with open_store(store_dsn, options=ONE) as store:
        await store.requests.engine.dispose()
        postgres.kill(signal.SIGSTOP)
        try:
            found = await asyncio.gather(*(store.requests.run(asks) for _ in range(3)), return_exceptions=True)
        finally:
            postgres.kill(signal.SIGCONT)
        assert [type(one) for one in found] == [StoreUnavailable] * 3, found
        assert await asyncio.gather(*(store.requests.run(asks) for _ in range(3))) == [1, 1, 1]


async def test_a_call_that_waits_while_a_connection_changes_hands_finds_the_pool_busy(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is nobody's at the end of the wait: it was given back, and the next call has not resumed yet."""
    async with open_store(store_dsn, options=ONE) as store:
        pool = store.requests
        leased = await pool.lease()

        async def last_moment() -> PoolProxiedConnection:
            pool.give_back(leased, reusable=True)
            raise PoolTimeout

        monkeypatch.setattr(type(pool.engine), "raw_connection", lambda _: last_moment())
        with pytest.raises(Overloaded):
            async with pool.connection():
                pass


async def test_a_pool_shows_its_connections_and_the_requests_that_wait_for_one(store_dsn: str) -> None:
    reader = InMemoryMetricReader()

    def shown() -> dict[str, int]:
        """Values of the pool of calls, by the end of the metric's name."""
        data = reader.get_metrics_data()
        assert data is not None
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        return {
            one.name.rpartition(".")[2]: int(point.value)  # type: ignore[union-attr]
            for one in metrics
            if one.name.startswith("db.client.connection.")
            for point in one.data.data_points
            if point.attributes == {"db.client.connection.pool.name": "request"}
        }

    options = PostgresOptions(pools=PoolSettings(1, 1, 1, pool_timeout_seconds=0.2))
    async with open_store(store_dsn, options=options) as store:
        meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
        measure_store(meter, store, Serving(), lambda: None)
        pool = store.requests
        assert shown() == {"count": 0, "max": 1, "pending_requests": 0, "timeouts": 0}
        leased = await pool.lease()
        waiting = asyncio.ensure_future(pool.run(lambda connection: connection.fetchval("SELECT 1")))
        await eventually(lambda: shown() == {"count": 1, "max": 1, "pending_requests": 1, "timeouts": 0})
        with pytest.raises(Overloaded):
            await waiting
        assert shown() == {"count": 1, "max": 1, "pending_requests": 0, "timeouts": 1}
        pool.give_back(leased, reusable=True)

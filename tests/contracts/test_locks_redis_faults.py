"""Locks while a real Redis stops, dies, loses its data, is full, is slow, or its answers get lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis as Client

from libs.errors import LockTimeout
from libs.locks.breaker import State
from libs.locks.port import LockManager, LocksUnavailable, hold_if_available
from libs.locks.redis import RedisLocks, RedisLockSettings
from libs.proving.servers.redis import Redis
from tests.contracts.lock_adapters import KEY, PATIENT, PROBING, SHORT, WAIT_SECONDS
from tests.waiting import eventually
from tests.wire import wire_to

FULL_BYTES = 1


@asynccontextmanager
async def full(client: Client) -> AsyncIterator[None]:
    before = str((await client.config_get("maxmemory"))["maxmemory"])
    await client.config_set("maxmemory", FULL_BYTES)
    try:
        yield
    finally:
        await client.config_set("maxmemory", before)


@pytest.fixture
async def client(redis_server: Redis) -> AsyncIterator[Client]:
    """An empty server, looked at from outside."""
    async with Client.from_url(redis_server.url, decode_responses=True) as client:
        await client.flushall()
        yield client


async def test_the_first_call_of_a_server_that_is_away_is_refused_within_a_second(redis_server: Redis) -> None:
    assert RedisLockSettings().command_seconds <= 1.0, "the whole time of one command; nothing else is waited for"
    async with RedisLocks.open(redis_server.url, RedisLockSettings(probe_seconds=600)) as locks:
        redis_server.kill(signal.SIGSTOP)
        try:
            callers = [asyncio.create_task(_pass_through(locks)) for _ in range(50)]
            results = await asyncio.gather(*callers, return_exceptions=True)
            assert {type(result) for result in results} == {LocksUnavailable}
            assert {getattr(result, "retry_seconds", None) for result in results} == {1.0}
            # One of them has asked and waited; those behind it were refused with it.
            assert locks.breaker.opened == 1
            assert locks.breaker.state is State.OPEN
        finally:
            redis_server.kill(signal.SIGCONT)


async def test_a_server_that_is_no_redis_is_away_and_asked_again_and_again() -> None:
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.read(1000):
            asked += 1
            writer.write(b"$abc\r\n")
        writer.close()

    other = await asyncio.start_server(talk, "127.0.0.1", 0)
    host, port = other.sockets[0].getsockname()
    async with other, RedisLocks.open(f"redis://{host}:{port}", PROBING) as locks:
        with pytest.raises(LocksUnavailable):
            await _pass_through(locks)
        before = asked
        await eventually(lambda: asked > before + 2)
        assert not locks.breaker.admits


async def test_one_probe_at_a_time_finds_out_that_a_server_is_back(redis_server: Redis) -> None:
    async with RedisLocks.open(redis_server.url, PROBING) as locks:
        redis_server.kill(signal.SIGKILL)
        with pytest.raises(LocksUnavailable):
            await _pass_through(locks)
        await eventually(lambda: locks.breaker.state is State.PROBING or locks.breaker.state is State.OPEN)
        assert not locks.breaker.admits
        redis_server.start()
        await eventually(lambda: locks.breaker.admits)
        assert locks.state.breaker == "closed"
        await _pass_through(locks)


async def test_a_full_server_refuses_new_locks_keeps_the_old_ones_and_gives_again_when_it_has_room(
    redis_server: Redis, client: Client
) -> None:
    settings = RedisLockSettings(renew_seconds=0.1, command_seconds=WAIT_SECONDS)
    async with RedisLocks.open(redis_server.url, settings) as locks:
        async with locks.hold("held/before", 0) as held, full(client):
            for _ in range(3):
                with pytest.raises(LocksUnavailable, match=r"the lock server refuses; .*maxmemory"):
                    await _pass_through(locks)
                async with hold_if_available(locks, KEY, 0) as lock:
                    assert lock is None
            # It answers, so calls are let through, and held locks are renewed and released.
            assert locks.state.breaker == "closed"
            renewals = locks.renewals
            await eventually(lambda: locks.renewals > renewals)
            assert held.remaining_seconds > 0
        assert await client.keys("*") == []
        await _pass_through(locks)
        assert locks.state.lost == 0


async def test_a_flush_costs_no_caller_an_error(redis_server: Redis, client: Client) -> None:
    async with (
        RedisLocks.open(redis_server.url, PATIENT) as locks,
        RedisLocks.open(redis_server.url, PATIENT) as others,
    ):
        done = 0

        async def work(manager: LockManager) -> None:
            nonlocal done
            for _ in range(10):
                async with manager.hold(KEY, WAIT_SECONDS):
                    await asyncio.sleep(0)
                done += 1

        workers = [asyncio.create_task(work(manager)) for manager in (locks, others) for _ in range(2)]
        while not all(worker.done() for worker in workers):
            await client.flushall()
            await asyncio.sleep(0)
        await asyncio.gather(*workers)
        assert done == 40
        assert await client.keys("*") == []


async def test_a_server_that_is_slow_gives_its_locks_slowly(redis_server: Redis, client: Client) -> None:
    async with wire_to(redis_server.port) as (wire, port), RedisLocks.open(_url(port), PATIENT) as locks:
        wire.slow_seconds = 0.05
        async with locks.hold(KEY, WAIT_SECONDS):
            assert await client.exists("baton:lock:" + KEY)
        assert locks.state.breaker == "closed"


async def test_a_server_that_is_too_slow_counts_as_away_until_it_is_fast_again(
    redis_server: Redis, client: Client
) -> None:
    async with wire_to(redis_server.port) as (wire, port), RedisLocks.open(_url(port), PROBING) as locks:
        await _pass_through(locks)
        wire.slow_seconds = 5.0
        with pytest.raises(LocksUnavailable):
            await _pass_through(locks)
        assert not locks.breaker.admits
        wire.slow_seconds = 0.0
        await eventually(lambda: locks.breaker.admits)
        await _pass_through(locks)


async def test_a_lock_whose_answer_was_lost_is_given_back_when_the_server_is_heard_again(
    redis_server: Redis, client: Client
) -> None:
    async with AsyncExitStack() as stack:
        wire, port = await stack.enter_async_context(wire_to(redis_server.port))
        settings = replace(PROBING, ttl_seconds=600)
        locks = await stack.enter_async_context(RedisLocks.open(_url(port), settings))
        others = await stack.enter_async_context(RedisLocks.open(redis_server.url, PATIENT))
        await _pass_through(locks)
        wire.deaf = True
        with pytest.raises(LocksUnavailable):
            await _pass_through(locks)
        # The server has executed the command, and no client knows.
        assert await client.exists("baton:lock:" + KEY)
        with pytest.raises(LockTimeout):
            await _pass_through(others, 0)
        wire.deaf = False
        # No caller asks for this lock again at the first manager, and it would not expire within the test.
        await eventually(lambda: _none(client))
        await _pass_through(others, 0)


async def test_a_lock_that_could_not_be_renewed_in_time_is_told_as_lost(redis_server: Redis, client: Client) -> None:
    async with RedisLocks.open(redis_server.url, SHORT) as locks, locks.hold(KEY, 0) as lock:
        redis_server.kill(signal.SIGKILL)
        await eventually(lambda: locks.state.lost == 1)
        assert lock.remaining_seconds == 0


async def _none(client: Client) -> bool:
    return not await client.keys("*")


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


async def _pass_through(locks: LockManager, wait_seconds: float = WAIT_SECONDS) -> None:
    async with locks.hold(KEY, wait_seconds):
        pass

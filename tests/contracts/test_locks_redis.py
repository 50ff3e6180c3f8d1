"""Faults that only locks in Redis have: death of a holder, a flush, an unavailable server."""

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis as Client

from libs.clock import ManualClock
from libs.errors import LockTimeout
from libs.locks.port import LockManager, LocksUnavailable, hold_if_available
from libs.locks.redis import RedisLocks, RedisLockSettings
from libs.proving.servers.redis import Redis
from tests.contracts.lock_adapters import (
    KEY,
    PATIENT,
    PROBING,
    SHORT,
    WAIT_SECONDS,
    Pair,
    is_unclaimed,
    locks_client,
    pass_through,
)
from tests.waiting import eventually


@pytest.fixture
async def client(redis_server: Redis) -> AsyncIterator[Client]:
    async with locks_client(redis_server) as client:
        yield client


@pytest.fixture
def stopped(redis_server: Redis) -> Iterator[Redis]:
    """A server that a test may stop: it runs again afterwards."""
    yield redis_server
    if redis_server.process.running:
        redis_server.kill(signal.SIGCONT)


async def test_a_lock_is_renewed_beyond_its_time_to_live(redis_server: Redis, client: Client) -> None:
    # A process may stand still for two seconds between two renewals.
    renewing = RedisLockSettings(ttl_seconds=2.4, renew_seconds=0.3, command_seconds=WAIT_SECONDS)
    async with (
        RedisLocks.open(redis_server.url, renewing) as locks,
        RedisLocks.open(redis_server.url, PATIENT) as others,
    ):
        async with locks.hold(KEY, 0) as lock:
            enough = math.ceil(1.5 * renewing.ttl_seconds / renewing.renew_seconds)
            await eventually(lambda: locks.renewals >= enough)
            assert lock.remaining_seconds > 0
            with pytest.raises(LockTimeout):
                await pass_through(others, 0)
        await pass_through(others, 0)


async def test_a_busy_process_does_not_keep_the_lock_from_one_that_asked_first(
    redis_server: Redis, client: Client
) -> None:
    order: list[str] = []

    async def use(locks: LockManager, name: str) -> None:
        async with locks.hold(KEY, WAIT_SECONDS):
            order.append(name)

    # The other process asks seldom, so by chance it would come late.
    seldom = RedisLocks.open(
        redis_server.url,
        RedisLockSettings(claim_seconds=WAIT_SECONDS, command_seconds=WAIT_SECONDS),
        chance=lambda: 20.0,
    )
    async with RedisLocks.open(redis_server.url, PATIENT) as busy, seldom as others:
        async with busy.hold(KEY, 0):
            users = [asyncio.create_task(use(others, "other"))]
            await eventually(lambda: client.exists(f"baton:lock:{KEY}:next"))
            users.append(asyncio.create_task(use(busy, "busy")))
            await eventually(lambda: "waiting=1" in repr(busy))
        await asyncio.gather(*users)
    assert order == ["other", "busy"]
    assert await client.keys("*") == []


async def test_a_claim_on_the_next_turn_ends_with_its_owner_s_patience(redis_server: Redis, client: Client) -> None:
    settings = RedisLockSettings(claim_seconds=WAIT_SECONDS, command_seconds=WAIT_SECONDS)
    async with (
        RedisLocks.open(redis_server.url, PATIENT) as locks,
        RedisLocks.open(redis_server.url, settings) as others,
    ):
        async with locks.hold(KEY, 0):
            with pytest.raises(LockTimeout):
                await pass_through(others, 0.01)
            cancelled = asyncio.create_task(pass_through(others))
            await eventually(lambda: client.exists(f"baton:lock:{KEY}:next"))
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            await eventually(lambda: is_unclaimed(client))
        await pass_through(locks, 0)


async def test_a_holder_that_died_is_forgotten(redis_server: Redis, client: Client) -> None:
    await client.set("baton:lock:" + KEY, "a dead holder's token", px=100)
    async with RedisLocks.open(redis_server.url, SHORT) as locks:
        await pass_through(locks)


async def test_a_lock_counts_as_lost_when_most_of_its_time_is_over(redis_server: Redis, client: Client) -> None:
    clock = ManualClock()
    async with RedisLocks.open(redis_server.url, PATIENT, clock=clock) as locks, locks.hold(KEY, 0) as lock:
        clock.advance(2.5)
        assert lock.remaining_seconds == pytest.approx(3.5)
        clock.advance(3.5)
        assert lock.remaining_seconds == 0
        clock.advance(-6)
        assert lock.remaining_seconds == 0


async def test_only_the_holder_gives_a_lock_back(redis_server: Redis, client: Client) -> None:
    async with RedisLocks.open(redis_server.url, PATIENT) as locks, locks.hold(KEY, 0):
        await client.set("baton:lock:" + KEY, "another's")
    assert await client.get("baton:lock:" + KEY) == "another's"


async def test_a_holder_whose_lock_is_anothers_does_not_renew_it(redis_server: Redis, client: Client) -> None:
    async with RedisLocks.open(redis_server.url, SHORT) as locks, locks.hold(KEY, 0) as lock:
        await client.set("baton:lock:" + KEY, "another's", px=60_000)
        await eventually(lambda: lock.remaining_seconds == 0)
        assert locks.lost == 1
        assert await client.pttl("baton:lock:" + KEY) > SHORT.ttl_seconds * 1000


async def test_a_flush_is_noticed_by_the_holder(redis_server: Redis, client: Client) -> None:
    settings = RedisLockSettings(renew_seconds=0.1, command_seconds=WAIT_SECONDS)
    async with (
        RedisLocks.open(redis_server.url, settings) as locks,
        RedisLocks.open(redis_server.url, PATIENT) as others,
    ):
        async with locks.hold(KEY, 0) as lock:
            await client.flushall()
            await eventually(lambda: lock.remaining_seconds == 0)
            async with others.hold(KEY, 0) as other:
                assert other.remaining_seconds > 0
        # Leaving the lost one has not taken the other's.
        await pass_through(others, 0)


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("used_before", [True, False], ids=["used before", "new"])
async def test_locks_of_a_server_that_is_away_are_refused_and_come_back_with_it(
    stopped: Redis, signum: signal.Signals, used_before: bool
) -> None:
    async with RedisLocks.open(stopped.url, PROBING) as locks:
        if used_before:
            await pass_through(locks)
        stopped.kill(signum)
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(LocksUnavailable) as caught:
                await pass_through(locks)
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "LOCKS_UNAVAILABLE")
        if signum == signal.SIGSTOP:
            stopped.kill(signal.SIGCONT)
        else:
            stopped.restart()
        await eventually(lambda: locks.breaker.admits)
        # It was in doubt whether the refused attempt had taken the lock, for its 10 s: it is no obstacle.
        await pass_through(locks, PROBING.ttl_seconds / 2)


async def test_while_the_server_is_away_a_call_is_refused_before_it_waits_for_anything(stopped: Redis) -> None:
    # No probe ends within the test, so nothing but the breaker can have refused.
    settings = RedisLockSettings(probe_seconds=600)
    async with RedisLocks.open(stopped.url, settings) as locks:
        stopped.kill(signal.SIGSTOP)
        with pytest.raises(LocksUnavailable):
            await pass_through(locks)
        for key in (KEY, "sandboxes/two"):
            entering = locks.hold(key, WAIT_SECONDS).__aenter__()
            with pytest.raises(LocksUnavailable):
                entering.__await__().__next__()
        assert locks.breaker.opened == 1


async def test_no_lock_is_given_while_the_server_is_away(stopped: Redis) -> None:
    async with RedisLocks.open(stopped.url, SHORT) as locks, RedisLocks.open(stopped.url, SHORT) as others:
        stopped.kill(signal.SIGKILL)
        for manager in (locks, others, locks):
            with pytest.raises(LocksUnavailable):
                await pass_through(manager)
            async with hold_if_available(manager, KEY, 0) as lock:
                assert lock is None


async def test_callers_that_wait_learn_that_the_server_is_away(stopped: Redis) -> None:
    async with RedisLocks.open(stopped.url, SHORT) as locks, RedisLocks.open(stopped.url, SHORT) as others:
        async with locks.hold(KEY, 0) as lock:
            waiters = [asyncio.create_task(pass_through(manager)) for manager in (locks, others) for _ in range(10)]
            await eventually(lambda: "waiting=10" in repr(locks) and "waiting=9" in repr(others))
            stopped.kill(signal.SIGKILL)
            await eventually(lambda: lock.remaining_seconds == 0)
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert {type(result) for result in results} == {LocksUnavailable}
        assert "held=0" in repr(locks) and "waiting=0" in repr(locks)


async def test_a_holder_leaves_without_an_error_when_the_server_has_gone(stopped: Redis) -> None:
    async with RedisLocks.open(stopped.url, PATIENT) as locks, locks.hold(KEY, 0):
        stopped.kill(signal.SIGKILL)


async def test_an_attempt_whose_caller_left_gives_back_what_it_gets(stopped: Redis, client: Client) -> None:
    async with RedisLocks.open(stopped.url, PROBING) as locks:
        await pass_through(locks)
        stopped.kill(signal.SIGSTOP)
        caller = asyncio.create_task(pass_through(locks))
        await eventually(lambda: "<MemoryLocks held=1" in repr(locks))
        await asyncio.sleep(0)
        caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
        stopped.kill(signal.SIGCONT)

        await Pair(locks, locks, client).becomes_free()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"renew_seconds": 6.0}, r"renew_seconds is 6; it must be more than 0 and less than 0.6 of ttl_seconds \(10\)"),
        ({"renew_seconds": 0.0}, "renew_seconds is 0"),
        ({"probe_seconds": 0.0}, "probe_seconds is 0; it must be more than 0"),
        ({"claim_seconds": 0.016}, "claim_seconds is 0.016; it must be more than 0.016"),
        ({"command_seconds": 0.0}, "command_seconds is 0; it must be more than 0"),
        ({"connections": 0}, "connections is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedisLockSettings(**settings)  # type: ignore[arg-type]

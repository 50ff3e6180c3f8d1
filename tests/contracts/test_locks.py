"""One suite for every lock manager, and what only locks in Redis can suffer."""

import asyncio
import math
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis as Client

from libs.clock import ManualClock
from libs.devstack.redis import Redis
from libs.errors import LockTimeout, Overloaded
from libs.locks.memory import MemoryLocks
from libs.locks.port import LockManager, LocksUnavailable, hold_if_available
from libs.locks.redis import RedisLocks, RedisLockSettings
from tests.waiting import eventually

KEY = "sandboxes/one"
WAIT_SECONDS = 10.0
WORK_STEPS = 200
# A lock that nobody renews is forgotten by Redis within the time of a test.
# Where a busy machine must not be taken for a server that is away.
PATIENT = RedisLockSettings(command_seconds=WAIT_SECONDS)
SHORT = RedisLockSettings(ttl_seconds=0.6, renew_seconds=0.12, probe_seconds=0.05)


@dataclass
class Pair:
    """Two users of the same locks, in two processes where the technology allows; and what is left of locks."""

    first: LockManager
    second: LockManager
    client: Client | None = None

    async def is_free(self) -> bool:
        return not await self.left()

    async def becomes_free(self) -> None:
        free: bool = await eventually(self.is_free)
        assert free

    async def left(self) -> list[str]:
        """Locks that somebody holds or waits for, in the managers and in the server."""
        managers = [repr(manager) for manager in (self.first, self.second)]
        left = [text for text in managers if re.search(r"(held|waiting)=[1-9]", text)]
        if self.client is not None:
            left += [str(key) for key in await self.client.keys("*")]
        return left


@pytest.fixture(params=["memory", "redis"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    if request.param == "memory":
        locks = MemoryLocks()
        yield Pair(locks, locks)
        return
    server: Redis = request.getfixturevalue("redis_server")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(server))
        first = await stack.enter_async_context(RedisLocks.open(server.url, PATIENT))
        second = await stack.enter_async_context(RedisLocks.open(server.url, PATIENT))
        yield Pair(first, second, client)


@asynccontextmanager
async def _client(server: Redis) -> AsyncIterator[Client]:
    """An empty server, looked at from outside."""
    async with Client.from_url(server.url, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def client(redis_server: Redis) -> AsyncIterator[Client]:
    async with _client(redis_server) as client:
        yield client


@pytest.fixture
def stopped(redis_server: Redis) -> Iterator[Redis]:
    """A server that a test may stop: it runs again afterwards."""
    yield redis_server
    if redis_server.process.running:
        redis_server.kill(signal.SIGCONT)


async def test_one_holder_at_a_time(pair: Pair) -> None:
    inside, most, done = 0, 0, 0

    async def worker(locks: LockManager) -> None:
        nonlocal inside, most, done
        for _ in range(5):
            async with locks.hold(KEY, WAIT_SECONDS) as lock:
                assert lock.key == KEY
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1
                done += 1

    await asyncio.gather(*(worker(locks) for locks in (pair.first, pair.second) for _ in range(5)))
    assert (most, done) == (1, 50)
    assert await pair.left() == []


async def test_other_keys_do_not_wait(pair: Pair) -> None:
    async with pair.first.hold("a", 0), pair.second.hold("b", 0), pair.first.hold("c", 0):
        pass
    assert await pair.left() == []


@pytest.mark.parametrize("wait_seconds", [-1.0, 0.0, 0.05])
async def test_a_wait_is_bounded_and_says_for_what(pair: Pair, wait_seconds: float) -> None:
    async with pair.first.hold(KEY, 0):
        for locks in (pair.first, pair.second):
            with pytest.raises(LockTimeout, match=f"{KEY} is busy: its lock was not free within") as caught:
                async with asyncio.timeout(WAIT_SECONDS), locks.hold(KEY, wait_seconds):
                    pass
            assert caught.value.metadata == {"key": KEY}
    assert await pair.left() == []


async def test_a_waiter_gets_the_lock_when_it_is_left(pair: Pair) -> None:
    got = asyncio.Event()

    async def wait() -> None:
        async with pair.second.hold(KEY, WAIT_SECONDS):
            got.set()

    async with asyncio.TaskGroup() as group:
        async with pair.first.hold(KEY, 0):
            group.create_task(wait())
            await asyncio.sleep(0)
            assert not got.is_set()
        await eventually(got.is_set)
    assert await pair.left() == []


async def test_a_holder_that_fails_leaves_the_lock(pair: Pair) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pair.first.hold(KEY, 0):
            raise ZeroDivisionError
    async with pair.second.hold(KEY, 0):
        pass
    assert await pair.left() == []


async def test_a_lock_that_is_held_has_time_left(pair: Pair) -> None:
    async with pair.first.hold(KEY, 0) as lock:
        assert lock.remaining_seconds > 0


@pytest.mark.parametrize("steps", range(25))
async def test_a_caller_that_is_cancelled_at_any_step_leaves_nothing(pair: Pair, steps: int) -> None:
    async def use(locks: LockManager) -> None:
        async with locks.hold(KEY, WAIT_SECONDS):
            await asyncio.sleep(0)

    users = [asyncio.create_task(use(locks)) for locks in (pair.first, pair.second, pair.first, pair.second)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for user in users[:3]:
        user.cancel()
    results = await asyncio.gather(*users, return_exceptions=True)
    assert results[3] is None
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)

    await pair.becomes_free()


async def test_a_waiter_that_is_cancelled_just_when_its_turn_comes_hands_it_on(pair: Pair) -> None:
    async def use() -> None:
        async with pair.first.hold(KEY, WAIT_SECONDS):
            await asyncio.Event().wait()

    for cancel_first in (True, False):
        holder = asyncio.create_task(use())
        await eventually(lambda: "held=1" in repr(pair.first))
        waiters = [asyncio.create_task(use()) for _ in range(3)]
        await eventually(lambda: "waiting=3" in repr(pair.first))
        order = [*waiters[:2], holder] if cancel_first else [holder, *waiters[:2]]
        for task in order:
            task.cancel()
        await asyncio.gather(*order, return_exceptions=True)
        await eventually(lambda: "waiting=0" in repr(pair.first))
        waiters[2].cancel()
        await asyncio.gather(waiters[2], return_exceptions=True)
        async with pair.second.hold(KEY, WAIT_SECONDS):
            pass


async def test_callers_of_one_process_come_in_order(pair: Pair) -> None:
    order: list[int] = []

    async def use(number: int) -> None:
        async with pair.first.hold(KEY, WAIT_SECONDS):
            order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(use(number))
    assert order == list(range(10))


async def test_no_user_starves_however_busy_the_others_are(pair: Pair) -> None:
    """A user that comes once is served while the others come again and again, from a queue that is never empty."""
    turns = {"busy": 0, "once": 0}
    over = asyncio.Event()

    async def busy(locks: LockManager) -> None:
        while not over.is_set():
            async with locks.hold(KEY, WAIT_SECONDS):
                turns["busy"] += 1
                # Held for much longer than it is free in between.
                for _ in range(WORK_STEPS):
                    await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(busy(pair.first))
        await eventually(lambda: turns["busy"])
        before = turns["busy"]
        for _ in range(5):
            async with pair.second.hold(KEY, WAIT_SECONDS):
                turns["once"] += 1
        over.set()
    # It waits for those that were there before it, and a few more until it has asked; not for hundreds.
    assert turns["once"] == 5
    assert turns["busy"] - before <= 5 * 10
    assert await pair.left() == []


async def test_holders_that_wait_for_each_other_both_get_an_answer(pair: Pair) -> None:
    """Nobody finds circular waits: they end because every wait does."""
    both_hold = asyncio.Barrier(2)

    async def use(locks: LockManager, first: str, second: str) -> str:
        async with locks.hold(first, WAIT_SECONDS):
            await both_hold.wait()
            try:
                async with locks.hold(second, 0.05):
                    return "done"
            except LockTimeout as error:
                return error.reason

    async with asyncio.timeout(WAIT_SECONDS):
        answers = await asyncio.gather(use(pair.first, "a", "b"), use(pair.second, "b", "a"))
    assert "LOCK_TIMEOUT" in answers
    assert set(answers) <= {"LOCK_TIMEOUT", "done"}
    assert await pair.left() == []


async def test_work_that_may_go_without_a_lock_has_one_while_it_can(pair: Pair) -> None:
    async with hold_if_available(pair.first, KEY, 0) as lock:
        assert lock is not None
        with pytest.raises(LockTimeout):
            async with hold_if_available(pair.second, KEY, 0):
                pass
    assert await pair.left() == []


async def test_too_many_waiters_are_sent_away() -> None:
    locks = MemoryLocks(waiters_per_key=1)
    async with asyncio.TaskGroup() as group:
        async with locks.hold(KEY, 0):
            waiter = group.create_task(_pass_through(locks))
            await eventually(lambda: "waiting=1" in repr(locks))
            with pytest.raises(Overloaded, match=f"{KEY}: 1 callers wait"):
                await _pass_through(locks)
        await waiter


async def test_a_lock_in_memory_cannot_be_lost() -> None:
    async with MemoryLocks().hold(KEY, 0) as lock:
        assert lock.remaining_seconds == math.inf


async def test_a_lock_is_renewed_beyond_its_time_to_live(redis_server: Redis, client: Client) -> None:
    async with RedisLocks.open(redis_server.url, SHORT) as locks, RedisLocks.open(redis_server.url, SHORT) as others:
        async with locks.hold(KEY, 0) as lock:
            enough = math.ceil(2 * SHORT.ttl_seconds / SHORT.renew_seconds)
            await eventually(lambda: locks.renewals >= enough)
            assert lock.remaining_seconds > 0
            with pytest.raises(LockTimeout):
                await _pass_through(others, 0)
        await _pass_through(others, 0)


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
                await _pass_through(others, 0.01)
            cancelled = asyncio.create_task(_pass_through(others))
            await eventually(lambda: client.exists(f"baton:lock:{KEY}:next"))
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            await eventually(lambda: _is_unclaimed(client))
        await _pass_through(locks, 0)


async def test_a_holder_that_died_is_forgotten(redis_server: Redis, client: Client) -> None:
    await client.set("baton:lock:" + KEY, "a dead holder's token", px=100)
    async with RedisLocks.open(redis_server.url, SHORT) as locks:
        await _pass_through(locks)


async def test_a_lock_counts_as_lost_when_most_of_its_time_is_over(redis_server: Redis, client: Client) -> None:
    clock = ManualClock()
    async with RedisLocks.open(redis_server.url, clock=clock) as locks, locks.hold(KEY, 0) as lock:
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
        await _pass_through(others, 0)


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("used_before", [True, False], ids=["used before", "new"])
async def test_locks_of_a_server_that_is_away_are_refused_and_come_back_with_it(
    stopped: Redis, signum: signal.Signals, used_before: bool
) -> None:
    async with RedisLocks.open(stopped.url, RedisLockSettings(probe_seconds=0.05)) as locks:
        if used_before:
            await _pass_through(locks)
        stopped.kill(signum)
        async with asyncio.timeout(2):
            with pytest.raises(LocksUnavailable) as caught:
                await _pass_through(locks)
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "LOCKS_UNAVAILABLE")
        if signum == signal.SIGSTOP:
            stopped.kill(signal.SIGCONT)
        else:
            stopped.restart()
        await eventually(lambda: locks.breaker.admits)
        # It was in doubt whether the refused attempt had taken the lock, for its 10 s: it is no obstacle.
        await _pass_through(locks, 1.0)


async def test_while_the_server_is_away_a_call_is_refused_before_it_waits_for_anything(stopped: Redis) -> None:
    # No probe ends within the test, so nothing but the breaker can have refused.
    settings = RedisLockSettings(probe_seconds=600)
    async with RedisLocks.open(stopped.url, settings) as locks:
        stopped.kill(signal.SIGSTOP)
        with pytest.raises(LocksUnavailable):
            await _pass_through(locks)
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
                await _pass_through(manager)
            async with hold_if_available(manager, KEY, 0) as lock:
                assert lock is None


async def test_callers_that_wait_learn_that_the_server_is_away(stopped: Redis) -> None:
    async with RedisLocks.open(stopped.url, SHORT) as locks, RedisLocks.open(stopped.url, SHORT) as others:
        async with locks.hold(KEY, 0) as lock:
            waiters = [asyncio.create_task(_pass_through(manager)) for manager in (locks, others) for _ in range(10)]
            await eventually(lambda: "waiting=10" in repr(locks) and "waiting=9" in repr(others))
            stopped.kill(signal.SIGKILL)
            await eventually(lambda: lock.remaining_seconds == 0)
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert {type(result) for result in results} == {LocksUnavailable}
        assert "held=0" in repr(locks) and "waiting=0" in repr(locks)


async def test_a_holder_leaves_without_an_error_when_the_server_has_gone(stopped: Redis) -> None:
    async with RedisLocks.open(stopped.url) as locks, locks.hold(KEY, 0):
        stopped.kill(signal.SIGKILL)


async def test_an_attempt_whose_caller_left_gives_back_what_it_gets(stopped: Redis, client: Client) -> None:
    async with RedisLocks.open(stopped.url) as locks:
        await _pass_through(locks)
        stopped.kill(signal.SIGSTOP)
        caller = asyncio.create_task(_pass_through(locks))
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


async def _pass_through(locks: LockManager, wait_seconds: float = WAIT_SECONDS) -> None:
    async with locks.hold(KEY, wait_seconds):
        pass


async def _is_unclaimed(client: Client) -> bool:
    return not await client.exists(f"baton:lock:{KEY}:next")

"""One suite for every lock manager."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from libs.errors import LockTimeout, Overloaded
from libs.locks.memory import MemoryLocks
from libs.locks.port import LockManager, hold_if_available
from libs.locks.redis import RedisLocks
from libs.proving.servers.redis import Redis
from tests.contracts.lock_adapters import (
    KEY,
    PATIENT,
    WAIT_SECONDS,
    WORK_STEPS,
    Pair,
    locks_client,
    pass_through,
)
from tests.waiting import eventually


@pytest.fixture(params=["memory", "redis"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    if request.param == "memory":
        locks = MemoryLocks()
        yield Pair(locks, locks)
        return
    server: Redis = request.getfixturevalue("redis_server")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(locks_client(server))
        first = await stack.enter_async_context(RedisLocks.open(server.url, PATIENT))
        second = await stack.enter_async_context(RedisLocks.open(server.url, PATIENT))
        yield Pair(first, second, client)


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

    # A caller that need not wait would be done before the next one comes.
    async with asyncio.TaskGroup() as group, pair.first.hold(KEY, WAIT_SECONDS):
        for number in range(10):
            group.create_task(use(number))
        await eventually(lambda: "waiting=10" in repr(pair.first))
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
    """Circular waits are not detected: they end because every wait has a limit."""
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
            waiter = group.create_task(pass_through(locks))
            await eventually(lambda: "waiting=1" in repr(locks))
            with pytest.raises(Overloaded, match=f"{KEY}: 1 callers wait"):
                await pass_through(locks)
        await waiter


async def test_a_waiter_that_has_gone_takes_no_place() -> None:
    locks = MemoryLocks(waiters_per_key=1)
    async with locks.hold(KEY, 0):
        for _ in range(2):
            with pytest.raises(LockTimeout):
                async with locks.hold(KEY, 0.001):
                    pass
            assert "waiting=0" in repr(locks)


async def test_a_lock_in_memory_cannot_be_lost() -> None:
    async with MemoryLocks().hold(KEY, 0) as lock:
        assert lock.remaining_seconds == math.inf

"""The queue of calls that wait for an unavailable store: order, number and time limit."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from libs.ownership.model import Store
from libs.rpc import callers
from libs.rpc.callers import Caller
from services.router.flows.calls import patience
from services.router.flows.calls.patience import Patience, QueueFull, Waiting
from services.router.flows.stores import Away
from services.router.flows.traffic import Traffic
from tests.waiting import eventually


def away(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Away:
    none = grpc.aio.Metadata()
    return Away(Store.A, grpc.aio.AioRpcError(code, none, none, "gone"))


async def test_the_earliest_deadline_goes_first_and_each_answer_lets_two_more_go() -> None:
    traffic = Traffic()
    queue = Patience(traffic, 5.0)
    now = asyncio.get_running_loop().time()
    tries: list[int] = []
    back = False

    async def call(number: int) -> int:
        async def work() -> int:
            if traffic.waiting.total() or tries:
                tries.append(number)
            if not back:
                raise away()
            queue.heard(Store.A, None)
            return number

        return await queue.call(work, Waiting("update", False, 1, lambda _: now + 60 - number))

    calls = [asyncio.create_task(call(number)) for number in range(8)]
    await eventually(lambda: traffic.waiting[Store.A] == 8)
    tries.clear()
    await eventually(lambda: len(tries) >= 3)
    assert set(tries) == {7}, "while the store is away, one call tries: that whose deadline comes first"
    back = True
    assert await asyncio.gather(*calls) == list(range(8))
    assert tries[tries.index(6) :] == list(range(6, -1, -1))


async def test_a_queue_that_is_let_go_has_so_many_tries_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that has just started is not flooded, and a finished attempt gives its slot to the next."""
    monkeypatch.setattr(patience, "MOST_TRIES", 3)
    monkeypatch.setattr(patience, "PROBE_SECONDS", 0.001)
    traffic = Traffic()
    queue = Patience(traffic, 5.0)
    later = asyncio.get_running_loop().time() + 60
    go_on = asyncio.Event()
    now = most = 0

    async def call() -> None:
        nonlocal now, most
        first = True

        async def work() -> None:
            nonlocal first, now, most
            if first:
                first = False
                raise away()
            now += 1
            most = max(most, now)
            await go_on.wait()
            now -= 1
            queue.heard(Store.A, None)

        await queue.call(work, Waiting("get", True, 1, lambda _: later))

    calls = [asyncio.create_task(call()) for _ in range(10)]
    await eventually(lambda: now == 3)
    assert (queue.calls, queue.writes) == (7, 0), "reads are no writes"
    for _ in range(3):
        queue.heard(Store.A, None)
    go_on.set()
    await asyncio.gather(*calls)
    assert most == 3


async def test_each_answer_lets_two_more_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PROBE_SECONDS", 1000.0)
    queue = Patience(Traffic(), 5.0)
    later = asyncio.get_running_loop().time() + 60
    back, tries = False, 0
    go_on = asyncio.Event()

    async def work() -> None:
        nonlocal tries
        if not back:
            raise away()
        tries += 1
        await go_on.wait()

    calls = [asyncio.create_task(queue.call(work, Waiting("get", True, 1, lambda _: later))) for _ in range(8)]
    await eventually(lambda: queue.calls == 8)
    back = True
    for answers in (1, 2, 3):
        queue.heard(Store.A, None)
        await eventually(lambda: tries == 2 * answers)  # noqa: B023
        assert queue.calls == 8 - 2 * answers
    queue.heard(Store.A, None)
    go_on.set()
    await asyncio.gather(*calls)


async def test_all_calls_whose_time_is_over_end_at_once_and_are_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "PROBE_SECONDS", 0.3)
    queue = Patience(Traffic(), 5.0)
    soon = asyncio.get_running_loop().time() + 0.2
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        raise away()

    calls = [asyncio.create_task(queue.call(work, Waiting("get", True, 1, lambda _: soon))) for _ in range(20)]
    await eventually(lambda: queue.calls == 20)
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert ({type(error) for error in ended}, tries) == ({Away}, 20)


async def test_a_call_that_has_used_up_its_time_waits_for_no_store_and_shows_no_outage() -> None:
    queue = Patience(Traffic(), 5.0)
    later = asyncio.get_running_loop().time() + 60
    late = away(grpc.StatusCode.DEADLINE_EXCEEDED)

    async def work() -> None:
        queue.heard(Store.A, late)
        raise late

    async with asyncio.timeout(5.0):
        with pytest.raises(Away):
            await queue.call(work, Waiting("get", True, 1, lambda _: later))
    assert queue.away_since(Store.A, 7.0) == 7.0
    queue.heard(Store.A, away())
    assert queue.away_since(Store.A, 1e9) < 1e9


async def test_the_earliest_deadline_goes_first_also_when_callers_have_left() -> None:
    queue = Patience(Traffic(), 5.0)
    now = asyncio.get_running_loop().time()
    tries: list[int] = []
    back = False

    async def call(number: int) -> None:
        async def work() -> None:
            if not back:
                raise away()
            tries.append(number)
            queue.heard(Store.A, None)

        await queue.call(work, Waiting("update", False, 1, lambda _: now + 60 + number))

    calls = {number: asyncio.create_task(call(number)) for number in (5, 3, 8, 2, 4, 7, 6, 1)}
    await eventually(lambda: queue.calls == 8)
    calls.pop(2).cancel()
    await eventually(lambda: [place.turn.done() for place in queue._queues[Store.A].waiters] == [False] * 7)
    back = True
    await asyncio.gather(*calls.values())
    assert tries == [1, 3, 4, 5, 6, 7, 8]


async def test_the_bytes_that_wait_are_bounded() -> None:
    queue = Patience(Traffic(), 5.0)
    later = asyncio.get_running_loop().time() + 60

    async def work() -> None:
        raise away()

    first = asyncio.create_task(queue.call(work, Waiting("update", False, patience.MOST_BYTES, lambda _: later)))
    await eventually(lambda: queue.calls == 1)
    with pytest.raises(QueueFull):
        await queue.call(work, Waiting("update", False, 1, lambda _: later))
    first.cancel()
    await asyncio.wait([first])
    assert (queue.calls, queue.writes) == (0, 0), "a caller who leaves holds no place"


async def test_a_call_that_tries_again_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a newcomer takes it, and the call that has waited is refused."""
    monkeypatch.setattr(patience, "MOST_CALLS", 1)
    monkeypatch.setattr(patience, "PROBE_SECONDS", 0.001)
    traffic = Traffic()
    queue = Patience(traffic, 5.0)
    waiting = Waiting("get", True, 1, lambda _: asyncio.get_running_loop().time() + 60)
    tries, fail = 0, asyncio.Event()

    async def first() -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            await fail.wait()
        if tries < 4:
            raise away()

    async def newcomer() -> None:
        raise away()

    call = asyncio.create_task(queue.call(first, waiting))
    await eventually(lambda: tries == 2)
    with pytest.raises(QueueFull):
        await queue.call(newcomer, Waiting("get", True, 1, lambda _: asyncio.get_running_loop().time() + 0.1))
    fail.set()
    await call
    assert tries == 4


async def test_one_caller_may_fill_its_share_of_the_queue_and_another_still_waits() -> None:
    traffic = Traffic()
    queue = Patience(traffic, 5.0, caller_share=0.5)
    most_of_one = patience.MOST_CALLS // 2
    back = asyncio.Event()
    until = asyncio.get_running_loop().time() + 60

    async def call(caller: Caller) -> str:
        callers.current.set(caller)

        async def work() -> str:
            if not back.is_set():
                raise away()
            queue.heard(Store.A, None)
            return "answered"

        return await queue.call(work, Waiting("update", False, 1, lambda _: until))

    ann, ben = Caller(), Caller()
    waiting = [asyncio.create_task(call(ann)) for _ in range(most_of_one)]
    await eventually(lambda: ann.waiting == most_of_one)
    with pytest.raises(QueueFull):
        await asyncio.create_task(call(ann))
    other = asyncio.create_task(call(ben))
    await eventually(lambda: ben.waiting == 1)
    back.set()
    assert set(await asyncio.gather(other, *waiting)) == {"answered"}
    assert (ann.waiting, ben.waiting) == (0, 0)

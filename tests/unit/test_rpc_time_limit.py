"""One timer for the time limit of many calls."""

from __future__ import annotations

import asyncio

import pytest

from libs.rpc.time_limit import TimeLimit, TimeLimitPassed

SHORT_SECONDS = 0.02
SECOND_SECONDS = 0.5
LONG_SECONDS = 60.0
BOUND_SECONDS = 20.0


async def test_work_that_takes_too_long_is_cancelled() -> None:
    limit, ended = TimeLimit(SHORT_SECONDS), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    for _ in range(2):
        ended.clear()
        with pytest.raises(TimeLimitPassed):
            await limit.run(work())
        assert ended.is_set()
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_many_calls_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, loop = TimeLimit(LONG_SECONDS), asyncio.get_running_loop()
    timers: list[object] = []
    call_later = loop.call_later

    def counted(*arguments: object) -> asyncio.TimerHandle:
        timers.append(arguments)
        return call_later(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", counted)
    assert await asyncio.gather(*(limit.run(asyncio.sleep(0, number)) for number in range(10))) == list(range(10))
    assert await limit.run(asyncio.sleep(0, "later")) == "later"
    assert len(timers) == 1


async def test_each_call_has_its_own_time() -> None:
    """The timer of the first call waits for the second one afterwards."""
    limit = TimeLimit(SHORT_SECONDS)
    clock = asyncio.get_running_loop().time

    async def late() -> float:
        began = clock()
        with pytest.raises(TimeLimitPassed):
            await limit.run(asyncio.Event().wait())
        return clock() - began

    first = asyncio.create_task(late())
    await asyncio.sleep(0)
    limit.seconds = SECOND_SECONDS
    second = asyncio.create_task(late())
    assert await first >= SHORT_SECONDS
    async with asyncio.timeout(BOUND_SECONDS):
        assert await second >= SECOND_SECONDS


async def test_a_cancel_from_outside_stays_a_cancel() -> None:
    limit = TimeLimit(LONG_SECONDS)
    task = asyncio.create_task(limit.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancel_from_outside_wins_over_the_limit() -> None:
    limit = TimeLimit(SHORT_SECONDS)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            task.cancel()

    task = asyncio.create_task(limit.run(work()))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_error_of_the_work_is_the_callers() -> None:
    async def work() -> None:
        raise TimeoutError("of the work's own")

    with pytest.raises(TimeoutError, match="own"):
        await TimeLimit(LONG_SECONDS).run(work())

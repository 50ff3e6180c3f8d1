"""Work that outlives its caller, and loops that outlive their failures."""

import asyncio
from contextlib import suppress

import pytest

from libs.errors import Overloaded, StoreNotReady
from libs.tasks import Background, Loop, all_or_none
from tests.waiting import eventually


async def test_a_caller_who_leaves_does_not_stop_the_work() -> None:
    background = Background(2, "writes")
    go_on, finished = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        finished.set()

    caller = asyncio.create_task(background.run(work()))
    await eventually(lambda: background.running == 1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    assert await background.drain(5.0) == 0
    assert finished.is_set()


async def test_work_above_the_limit_is_refused_before_it_begins() -> None:
    background = Background(1, "writes")
    go_on = asyncio.Event()
    first = asyncio.create_task(background.run(go_on.wait()))
    await eventually(lambda: background.running == 1)
    begun = []

    async def second() -> None:
        begun.append(1)

    with pytest.raises(Overloaded):
        await background.run(second())
    go_on.set()
    assert await first
    assert not begun


async def test_a_failure_after_the_caller_left_is_seen_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    background = Background(1, "writes")
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise RuntimeError("the disk is gone")

    caller = asyncio.create_task(background.run(work()))
    await eventually(lambda: background.running == 1)
    caller.cancel()
    await asyncio.wait([caller])
    go_on.set()
    await background.drain(5.0)
    await eventually(lambda: "the disk is gone" in caplog.text)


async def test_drain_takes_no_new_work_and_has_a_bound() -> None:
    background = Background(4, "writes")
    caller = asyncio.create_task(background.run(asyncio.Event().wait()))
    await eventually(lambda: background.running == 1)
    assert await background.drain(0.02) == 1
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(StoreNotReady):
        await background.run(asyncio.sleep(0))


async def test_a_loop_goes_on_when_only_what_it_waited_for_was_cancelled() -> None:
    runs = 0
    hold = asyncio.Event()

    async def body(loop: Loop) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            another = asyncio.get_running_loop().create_future()
            another.cancel()
            await another
        await hold.wait()

    loop = Loop("feed", body, first_pause_seconds=0.001)
    task = asyncio.create_task(loop.run())
    await eventually(lambda: runs == 2)
    assert loop.failures == 1
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_loop_goes_on_after_failures_and_shows_the_last_one() -> None:
    runs = 0
    hold = asyncio.Event()

    async def body(loop: Loop) -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise OSError(f"failure {runs}")
        assert loop.trouble == "OSError: failure 3"
        loop.well()
        await hold.wait()

    loop = Loop("feed", body, first_pause_seconds=0.001, longest_pause_seconds=0.002)
    task = asyncio.create_task(loop.run())
    await eventually(lambda: runs == 4)
    assert (loop.failures, loop.trouble) == (3, "")
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("failure", [None, OSError("the answer is lost")], ids=["an answer", "a failure"])
async def test_a_loop_ends_though_its_body_has_lost_the_cancellation(failure: Exception | None) -> None:
    lost = False

    async def body(_: Loop) -> None:
        nonlocal lost
        assert not lost, "the loop goes on"
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost = True
        if failure is not None:
            raise failure

    loop = Loop("feed", body, first_pause_seconds=0.001)
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=0.5)
    ended = task.cancelled()
    task.cancel()
    assert ended, loop.trouble


async def test_no_work_is_done_at_once() -> None:
    assert await all_or_none([]) == []

"""Measurements around locks, with any lock manager."""

import asyncio

import pytest
from opentelemetry.metrics import NoOpMeter

from libs.clock import ManualClock
from libs.errors import LockTimeout
from libs.locks.measured import MeasuredLocks
from libs.locks.memory import MemoryLocks
from libs.locks.port import LocksUnavailable
from libs.telemetry.latency import bucket_of_seconds
from tests.unit.test_backend_calls import NoLocks
from tests.waiting import eventually

KEY = "sandboxes/one"


def measured(clock: ManualClock) -> MeasuredLocks:
    return MeasuredLocks(MemoryLocks(), clock, NoOpMeter("test"))


async def test_a_wait_counts_from_asking_to_having_and_a_write_that_asks_for_no_lock_waits_for_nobody() -> None:
    clock = ManualClock()
    locks = measured(clock)

    async def use() -> None:
        async with locks.hold(KEY, 60):
            pass

    async with locks.hold(KEY, 0):
        assert (locks.state.backend, locks.state.held, locks.waiting) == ("memory", 1, 0)
        user = asyncio.create_task(use())
        await eventually(lambda: locks.waiting == 1)
        clock.advance(0.25)
    await user
    locks.no_lock_needed()
    assert locks.waits == {0: 2, bucket_of_seconds(0.25): 1}
    assert locks.outcomes == {"ACQUIRED": 2}
    assert (locks.state.held, locks.waiting) == (0, 0)
    clock.advance(11 * 60)
    assert locks.waits == {}


async def test_those_that_get_no_lock_have_waited_too_but_not_those_that_left() -> None:
    clock = ManualClock()
    locks = measured(clock)
    async with locks.hold(KEY, 0):
        with pytest.raises(LockTimeout):
            async with locks.hold(KEY, 0):
                pass
        leaving = asyncio.create_task(locks.hold(KEY, 60).__aenter__())
        await eventually(lambda: locks.waiting == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    assert locks.outcomes == {"ACQUIRED": 1, "LOCK_TIMEOUT": 1, "LEFT": 1}
    assert locks.waits == {0: 2}
    assert locks.waiting == 0


async def test_a_lock_server_that_is_away_is_told_of() -> None:
    locks = MeasuredLocks(NoLocks(), ManualClock(), NoOpMeter("test"))
    with pytest.raises(LocksUnavailable):
        async with locks.hold(KEY, 1):
            pass
    assert locks.outcomes == {"LOCKS_UNAVAILABLE": 1}
    assert locks.state.breaker == "open"

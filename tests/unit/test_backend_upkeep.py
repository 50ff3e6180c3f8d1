"""Ticks of a store."""

from __future__ import annotations

import pytest

from libs.backend.upkeep import PRUNE_SECONDS, PruneLoop, UpkeepLoop
from libs.clock import ManualClock
from libs.ownership.limits import LONGEST_TICK_SECONDS, RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import Store
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from libs.store.port import Upkeep
from tests.contracts.store_adapters import own, put, record_of, row_of, served_of

KEY = "sandboxes/one"


async def test_ticks_are_monotonic_time_and_what_a_standstill_took_is_not_counted() -> None:
    """A lease that was granted just before a late tick would else end by the whole delay too early."""
    clock = ManualClock()
    store = MemoryStore(Store.A, clock, sandbox_columns)
    await own(store, [KEY])
    await put(store, KEY, "r1", "w")
    upkeep = UpkeepLoop(store, clock)
    clock.advance(1.25)
    await upkeep.tick()
    assert (await store.outbox.depth()).oldest_seconds == 1.25
    clock.advance(60.0)
    await upkeep.tick()
    assert (await store.outbox.depth()).oldest_seconds == 1.25 + LONGEST_TICK_SECONDS
    clock.advance(1.0)
    await upkeep.tick()
    assert (await store.outbox.depth()).oldest_seconds == 2.25 + LONGEST_TICK_SECONDS


class Stalling:
    """A store's upkeep whose next tick takes a while to be written down, and then something happens just before."""

    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        self._inner: Upkeep = store.upkeep
        self._store = store
        self._clock = clock
        self.seconds = 0.0

    async def tick(self, elapsed_seconds: float) -> None:
        if self.seconds:
            self._clock.advance(self.seconds)
            self.seconds = 0.0
            await put(self._store, KEY, "r1", "w")
        await self._inner.tick(elapsed_seconds)

    async def prune(self) -> int:
        return await self._inner.prune()


@pytest.mark.parametrize("late", [0.25, 1.0, 2.0, 60.0])
@pytest.mark.parametrize("stall", [0.25, 1.0, 3.0])
async def test_no_lease_ends_early_by_a_tick_that_is_written_late(late: float, stall: float) -> None:
    """A lease that is granted just before a tick is written sees that tick and the time that the next one counts."""
    clock = ManualClock()
    store = MemoryStore(Store.A, clock, sandbox_columns)
    await own(store, [KEY])
    store.upkeep = stalling = Stalling(store, clock)
    upkeep = UpkeepLoop(store, clock)
    clock.advance(late)
    stalling.seconds = stall
    await upkeep.tick()
    for seconds in range(1, 4):
        clock.advance(1.0)
        await upkeep.tick()
        assert (await store.outbox.depth()).oldest_seconds <= seconds + LONGEST_TICK_SECONDS


@pytest.mark.slow
async def test_two_retry_windows_of_any_rate_leave_the_served_requests_of_one_window_and_one_pause() -> None:
    """By far more than one batch for each pause, as 200 writes a second are."""
    store = MemoryStore(Store.A, ManualClock(), sandbox_columns)
    pruning = PruneLoop(store)
    each_pause = 16 * SERVED_WINDOW
    bound = each_pause * (RETRY_WINDOW_SECONDS / PRUNE_SECONDS + 2)
    most = 0
    for pause in range(1, int(2 * RETRY_WINDOW_SECONDS / PRUNE_SECONDS) + 1):
        requests = [served_of(f"r{pause}-{number}", (0, pause), b"") for number in range(each_pause)]
        await store.transfers.apply([record_of(row_of(KEY, (0, pause), Store.A), *requests)])
        await store.upkeep.tick(PRUNE_SECONDS)
        most = max(most, len(store._state.served))
        await pruning.prune()
    assert each_pause * RETRY_WINDOW_SECONDS / PRUNE_SECONDS <= most <= bound

"""What a store's ticks are made of."""

from __future__ import annotations

from libs.backend.upkeep import UpkeepLoop
from libs.clock import ManualClock
from libs.ownership.limits import LONGEST_TICK_SECONDS
from libs.ownership.model import Store
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from tests.contracts.store_adapters import own, put

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

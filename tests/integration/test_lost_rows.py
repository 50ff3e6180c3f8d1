"""A store that has lost rows is found at the next comparison, fenced, and brought back from the other store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from libs.backend import lost_rows
from libs.clock import SystemClock
from libs.errors import StoreNotReady
from libs.ownership.model import Store, bucket_of
from libs.store.inspection import Missing
from libs.store.memory_inspection import MemoryInspection
from services.router.flows.jobs import recover as flows_recover
from services.router.flows.jobs.kind import Position
from services.router.flows.jobs.reconcile_job import Reconcile
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import Refused
from tests.contracts.store_adapters import put, word_of
from tests.integration.test_recovery import b_owns, recover, relayed, same, step_by_step
from tests.system.control import running_loops
from tests.system.whole import System, running_system
from tests.waiting import eventually

A, B = Store.A, Store.B
KEYS = [f"shelves/{number:02d}" for number in range(8)]


@pytest.fixture
async def system(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """Without relays and feeds. No write is under way when a store is fenced."""
    monkeypatch.setattr(flows_recover, "FENCED_SECONDS", 0.0)
    async with running_system(feeds=False, mover=False) as system:
        await system.control.load()
        yield system


def lose(system: System, *keys: str) -> None:
    for key in keys:
        del system.ports(B)._state.rows[key]


async def compare(system: System, deep: str) -> None:
    reconcile = Reconcile(system.stores, Transfer(system.stores), system.log, SystemClock())
    await reconcile.step(Position({"deep": deep}, b"", limit=1024))


@pytest.mark.parametrize("deep", ["no", "yes"])
async def test_a_store_that_has_lost_rows_is_fenced_at_the_next_comparison(system: System, deep: str) -> None:
    await b_owns(system, KEYS)
    await compare(system, deep)
    assert system.backends[B].serving.serving, "nothing is missing"
    lose(system, KEYS[1], KEYS[2])
    with pytest.raises(Refused, match="rows are missing: 2, in"):
        await compare(system, deep)
    assert "rows are missing: 2, in" in (await system.ports(B).recovery.standing()).fence_reason
    with pytest.raises(StoreNotReady):
        await put(system.ports(B), KEYS[1], "again", "made a second time")
    keeper = system.backends[B].admission_loop
    async with running_loops(keeper.loop):
        await eventually(lambda: not system.backends[B].serving.serving, what="the admission_loop sees the fence")


async def test_a_store_that_has_lost_rows_is_not_admitted(system: System) -> None:
    await b_owns(system, KEYS)
    lose(system, KEYS[0])
    await system.backends[B].admission_loop.admit()
    assert not system.backends[B].serving.serving
    assert "rows are missing: 1, in" in system.backends[B].serving.fence_reason


async def test_a_start_counts_for_a_moment_and_rows_that_are_missing_later_fence_the_serving_store(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_rows, "START_SECONDS", 0.0)
    monkeypatch.setattr(lost_rows, "PAUSE_SECONDS", 0.0)
    await b_owns(system, KEYS)
    await system.ports(B).recovery.skip_to({part: end for part, (_, end) in (await system.log.ends()).items()})
    lose(system, max(KEYS, key=bucket_of))
    keeper = system.backends[B].admission_loop
    await keeper.admit()
    assert system.backends[B].serving.serving, "the count is not over"
    async with running_loops(keeper.loop, lost_rows.RowCountLoop(system.ports(B), keeper.admission.rows).loop):
        await eventually(lambda: "rows are missing: 1, in" in system.backends[B].serving.fence_reason)
    assert not system.backends[B].serving.serving


async def test_a_bucket_that_takes_long_to_count_keeps_no_store_from_serving(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_rows, "START_SECONDS", 0.01)
    counting = asyncio.Event()

    async def never(inspection: MemoryInspection, buckets: Sequence[int] = ()) -> list[Missing]:
        counting.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(MemoryInspection, "missing", never)
    async with asyncio.timeout(10):
        await system.backends[B].admission_loop.admit()
    assert counting.is_set() and system.backends[B].serving.serving


async def test_a_recovery_brings_the_lost_rows_back_and_the_store_stays_open(system: System) -> None:
    await b_owns(system, KEYS)
    await put(system.ports(B), KEYS[1], "newer", "newest word")
    await relayed(system, B)
    lose(system, KEYS[1], KEYS[2])
    await system.backends[B].admission_loop.admit()
    step, _ = await step_by_step(system, recover(system))
    assert "serves again, with 8 records" in step.note
    assert await same(system)
    row = (await system.ports(B).records.read(KEYS[1])).row
    assert row is not None and word_of(row.payload) == "newest word"
    await compare(system, "no")
    await system.backends[B].admission_loop.admit()
    assert system.backends[B].serving.serving, "what was brought back is counted"


async def test_a_fenced_store_is_compared_while_its_rows_are_missing(system: System) -> None:
    """A recovery compares it before it opens."""
    await b_owns(system, KEYS)
    lose(system, KEYS[0])
    await system.backends[B].admission_loop.admit()
    await compare(system, "no")

"""The mover has several groups of buckets under way at once, and each may fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest

from libs.clock import ManualClock, SystemClock
from libs.errors import StoreUnavailable
from libs.ownership.model import BUCKETS, Store
from libs.pb.baton.record.v1 import record_pb2
from libs.tasks import Loop
from services.router.core.bucket_runs import BucketState
from services.router.core.phase import Phase
from services.router.flows.moving.mover import LEASE_NAME, LEASE_SECONDS, WORKERS, Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.stores import Away
from tests.system.whole import System, running_system, step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        while running.setting.current.phase is not Phase.CUTOVER:
            await step(running.migration, BY_HAND)
        yield running


class _Watched(Transfer):
    """Counts groups that give their bucket owners up. The group with this bucket fails, when others are under way."""

    def __init__(self, system: System, failing: int | None = None) -> None:
        super().__init__(system.stores)
        self.now = 0
        self.most = 0
        self._failing = failing

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self._failing in buckets:
                await eventually(lambda: self.now == WORKERS)
                raise StoreUnavailable("this group")
            released = await super().release_buckets(buckets, to)
            if self._failing is not None:
                await asyncio.Event().wait()
            return released
        finally:
            self.now -= 1


def mover_of(system: System, transfer: Transfer) -> Mover:
    return Mover(system.stores, transfer, system.setting, system.control, "router-1", SystemClock())


async def test_some_groups_are_under_way_at_once_and_no_more_than_that(system: System) -> None:
    transfer = _Watched(system)
    mover = mover_of(system, transfer)
    await mover.run_once(Loop("mover", mover.run_once))
    assert (mover.buckets_at_b, transfer.most) == (BUCKETS, WORKERS)


async def test_the_states_of_buckets_follow_a_move_and_a_store_that_stops(system: System) -> None:
    mover = mover_of(system, Transfer(system.stores))
    assert (mover.states, mover.states_age_seconds) == ((), None)
    await mover.run_once(Loop("mover", mover.run_once))
    assert set(mover.states) == {BucketState(Store.B, Store.B, arrived=True)}
    await system.stop(Store.B)
    with pytest.raises(Away):
        await mover.run_once(Loop("mover", mover.run_once))
    assert {state.owner for state in mover.states} == {Store.B}, "A does not claim what B owned"
    await system.start(Store.B)
    await system.stop(Store.A)
    with pytest.raises(Away):
        await mover.run_once(Loop("mover", mover.run_once))
    assert {state.owner for state in mover.states} == {Store.B}, "B answers for its own"


async def test_a_group_that_fails_ends_the_pass_with_its_error_and_leaves_nothing_running(system: System) -> None:
    transfer = _Watched(system, failing=40)
    mover = mover_of(system, transfer)
    before = asyncio.all_tasks()
    with pytest.raises(StoreUnavailable, match="this group"):
        await mover.run_once(Loop("mover", mover.run_once))
    assert transfer.now == 0
    assert {task for task in asyncio.all_tasks() - before if "Mover" in repr(task)} == set()
    again = mover_of(system, Transfer(system.stores))
    await again.run_once(Loop("mover", again.run_once))
    await again.run_once(Loop("mover", again.run_once))
    assert again.settled and again.buckets_at_b == BUCKETS, "the next pass takes up what was interrupted"


class _Faulty(Transfer):
    """Fails every fourth release."""

    calls = 0

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        self.calls += 1
        if self.calls % 4 == 0:
            raise StoreUnavailable("every fourth")
        return await super().release_buckets(buckets, to)


async def test_passes_that_come_forward_do_not_wait_longer_each_time_they_fail(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pause that doubles after each failure, the last pass would begin after hours."""
    monkeypatch.setattr("services.router.flows.moving.buckets.GROUP", 32)
    mover = mover_of(system, _Faulty(system.stores))
    loop = Loop("mover", mover.run_once, first_pause_seconds=0.3, longest_pause_seconds=1e6)
    moving = asyncio.create_task(loop.run())
    await eventually(lambda: mover.settled, 60.0)
    assert loop.failures > 4
    moving.cancel()
    await asyncio.wait([moving])


async def test_one_router_moves_the_buckets_at_a_time(system: System) -> None:
    assert await system.control.lease(LEASE_NAME, "router-2", LEASE_SECONDS)
    mover = mover_of(system, Transfer(system.stores))
    await mover.run_once(Loop("mover", mover.run_once))
    assert (mover.buckets_at_b, mover.progress.note) == (0, "another router moves the buckets")


async def test_nobody_says_that_all_is_settled_while_a_store_cannot_be_asked(system: System) -> None:
    mover = mover_of(system, Transfer(system.stores))
    for _ in range(2):
        await mover.run_once(Loop("mover", mover.run_once))
    assert mover.settled
    await system.stop(Store.B)
    with pytest.raises(Away):
        await mover.run_once(Loop("mover", mover.run_once))
    assert not mover.settled


async def test_records_are_not_settled_once_the_setting_wants_them_elsewhere(system: System) -> None:
    """A router must not report the aim of its last pass as reached while another one holds."""
    mover = mover_of(system, Transfer(system.stores))
    for _ in range(2):
        await mover.run_once(Loop("mover", mover.run_once))
    assert mover.settled
    await system.migration.rollback(BY_HAND, Phase.DUAL_WRITE)
    assert not mover.settled


class _Leases:
    """The control store's leases, with the time of each call."""

    def __init__(self, system: System, clock: ManualClock) -> None:
        self._control = system.control
        self._clock = clock
        self.taken_at: list[float] = []

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        self.taken_at.append(self._clock.monotonic())
        return await self._control.lease(name, holder, ttl_seconds)


class _Slow(Transfer):
    """Each group of buckets takes 1.5 s."""

    def __init__(self, system: System, clock: ManualClock) -> None:
        super().__init__(system.stores)
        self._clock = clock

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        self._clock.advance(1.5)
        return await super().release_buckets(buckets, to)


async def test_a_router_keeps_its_lease_during_a_long_pass(system: System) -> None:
    """Without it another router begins to move the same buckets."""
    clock = ManualClock()
    leases = _Leases(system, clock)
    mover = Mover(system.stores, _Slow(system, clock), system.setting, leases, "router-1", clock)
    began = clock.monotonic()
    await mover.run_once(Loop("mover", mover.run_once))
    took = clock.monotonic() - began
    assert took > 2 * LEASE_SECONDS and mover.buckets_at_b == BUCKETS
    times = [*leases.taken_at, clock.monotonic()]
    assert max(after - before for before, after in pairwise(times)) <= LEASE_SECONDS
    assert len(leases.taken_at) <= 2 * took / LEASE_SECONDS + 1, "and asks for it no more often than it needs to"

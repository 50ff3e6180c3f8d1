"""A decision about a store takes precedence over an admission in progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from libs.backend import admission, lost_rows, serving
from libs.backend.admission import Admission, StillReading
from libs.backend.arrivals import Arrivals
from libs.backend.serving import AdmissionLoop, Serving
from libs.clock import ManualClock
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS, bucket_to_pb, event_of
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from libs.store.recovery import FencedAt
from tests.contracts.store_adapters import check_nothing, own, put, record_of, row_of
from tests.waiting import eventually

BOUND_SECONDS = 10.0


class Door:
    """A store whose other store takes its time to answer, from that question on: the first one is for orders of a
    recovery, before the store looks whether it is fenced; the second one is for evidence, after that look."""

    def __init__(self, slow_from: int = 1) -> None:
        self.slow_from = slow_from
        self.questions = 0
        self.store = MemoryStore(Store.B, ManualClock(), sandbox_columns)
        self.log = MemoryEventLog(1)
        self.serving = Serving()
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        read = Arrivals(self.store, check_nothing).read
        self.keeper = AdmissionLoop(self.store, Admission(self.store, self._log, self._other, read), self.serving)

    async def _log(self) -> MemoryEventLog:
        return self.log

    async def say(self, key: str, revision: int, by: Store) -> None:
        """The log has that change."""
        event = event_of(record_of(row_of(key, (0, revision), by)))
        headers = HeaderWriter(by.value, "baton.record.v1").write(key, (0, revision), 1.0)
        await self.log.append([Event(key, event, headers)])

    async def _other(self) -> pb.GetStandingResponse:
        self.questions += 1
        if self.questions >= self.slow_from:
            self.asked.set()
            await self.answer.wait()
        bucket_owners = [bucket_to_pb(one) for one in await self.store.transfers.bucket_owners()]
        return pb.GetStandingResponse(store=STORE_NUMBERS[Store.A], bucket_owners=bucket_owners)

    def later(self, seconds: float) -> None:
        """The loop's clock, as the admission_loop reads it, is ahead by so much."""
        again = self.keeper._again
        assert again is not None
        again.until -= seconds

    async def admit_while(self, meanwhile: Callable[[], None]) -> None:
        task = asyncio.create_task(self.keeper.admit())
        async with asyncio.timeout(BOUND_SECONDS):
            await self.asked.wait()
            meanwhile()
            self.answer.set()
            await task

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """The loop that notices fences by other processes."""
        task = asyncio.create_task(self.keeper.loop.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=BOUND_SECONDS)


async def test_a_store_about_which_nothing_is_known_serves() -> None:
    door = Door()
    await door.admit_while(lambda: None)
    assert door.serving.serving


@pytest.mark.parametrize("slow_from", [1, 2])
async def test_a_store_that_is_fenced_while_it_is_admitted_stays_fenced(slow_from: int) -> None:
    door = Door(slow_from)
    task = asyncio.create_task(door.keeper.admit())
    async with asyncio.timeout(BOUND_SECONDS):
        await door.asked.wait()
        await door.store.recovery.fence("by hand")
        await door.keeper.fence("by hand")
        door.answer.set()
        await task
    assert (door.serving.serving, door.serving.fence_reason) == (False, "by hand")


async def test_a_process_that_ends_while_it_is_admitted_lets_nobody_in() -> None:
    door = Door()
    await door.admit_while(door.serving.drain)
    assert not door.serving.serving


async def fenced_by_another_process(door: Door) -> int:
    """The store goes on after the fence; returns how far it has come."""
    await door.store.recovery.fence("evidence", since={})
    (bucket_owner,) = await door.store.transfers.bucket_owners([0])
    assert (await door.store.transfers.adopt_bucket(replace(bucket_owner, version=9, owner=Store.B)))[0]
    return (await door.store.recovery.standing()).now.changes


async def fenced_at(door: Door) -> FencedAt | None:
    return (await door.store.recovery.standing()).fenced_at


async def test_a_process_that_served_vouches_for_what_it_may_have_told_the_other_store() -> None:
    """The other store knows the position that this process reported before it saw the fence: no evidence of a loss."""
    door = Door()
    await door.admit_while(lambda: None)
    changes = await fenced_by_another_process(door)
    async with door.looking():
        await eventually(lambda: door.serving.fence_reason == "evidence")
        assert not door.serving.serving

        async def vouched() -> bool:
            at = await fenced_at(door)
            return at is not None and at.changes == changes

        await eventually(vouched)


async def test_a_process_that_did_not_serve_vouches_for_nothing() -> None:
    """It was not admitted, so the position that it reads may be that of the database that went back in time."""
    door = Door()
    before = (await door.store.recovery.standing()).now.changes
    changes = await fenced_by_another_process(door)
    async with door.looking():
        await eventually(lambda: door.serving.fence_reason == "evidence")
    at = await fenced_at(door)
    assert at is not None and at.changes == before < changes


@pytest.fixture
async def half_done(monkeypatch: pytest.MonkeyPatch) -> Door:
    """A recheck that has read 5 of 25 events; later reads return at once."""
    door = Door()
    door.answer.set()
    for revision in range(1, 26):
        await door.say("sandboxes/a", revision, Store.A)
    await door.store.recovery.fence("evidence", since={})
    # So that no poll brings events of behind the end.
    monkeypatch.setattr(admission, "_POLL_EVENTS", 5)
    with monkeypatch.context() as slow:
        slow.setattr(admission, "STEP_SECONDS", 0.0)
        with pytest.raises(StillReading, match="5 of 25 events"):
            await door.keeper.recheck()
    return door


async def test_a_recheck_goes_on_where_it_has_stopped(half_done: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as slow:
        slow.setattr(admission, "STEP_SECONDS", 0.0)
        with pytest.raises(StillReading, match="10 of 25 events"):
            await half_done.keeper.recheck()
    assert await half_done.keeper.recheck() == ""


async def test_a_recheck_of_another_fence_reads_the_log_to_its_end_of_now(half_done: Door) -> None:
    await half_done.store.recovery.reopen()
    await half_done.say("sandboxes/b", 9, Store.B)
    await half_done.store.recovery.fence("other evidence", since={})
    assert "version 0-9" in await half_done.keeper.recheck()
    assert (await half_done.store.recovery.standing()).fence_reason == "other evidence"


async def test_a_recheck_counts_rows_in_slices_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door()
    door.answer.set()
    await own(door.store, ["sandboxes/a"])
    await put(door.store, "sandboxes/a", "r1", "a")
    await door.store.recovery.fence("evidence", since=(await door.store.feed.state()).next_offsets)
    with monkeypatch.context() as slow:
        slow.setattr(lost_rows, "START_SECONDS", 0.0)
        for counted in (1, 2):
            with pytest.raises(StillReading, match=f"counted in {counted} of 1024 buckets"):
                await door.keeper.recheck()
    del door.store._state.rows["sandboxes/a"]
    assert "rows are missing: 1" in await door.keeper.recheck()


async def test_a_recheck_that_was_left_for_long_begins_anew(half_done: Door) -> None:
    await half_done.say("sandboxes/b", 9, Store.B)
    half_done.later(serving.AGAIN_SECONDS)
    assert "version 0-9" in await half_done.keeper.recheck()
    assert (await half_done.store.recovery.standing()).fence_reason == "evidence"

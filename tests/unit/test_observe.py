"""Lag from the times of observations, and the cached setting."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from libs.clock import ManualClock
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event
from libs.ownership.model import Store
from libs.pb.baton.replication.v1.replication_pb2 import Feed, GetStatusResponse, Locks, Outbox
from libs.pb.baton.telemetry.v1.telemetry_pb2 import Certificate
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.control.port import ControlUnavailable, JournalEntry
from services.router.core.phase import Phase, Setting, advance, next_phase
from services.router.flows.steering.observe import (
    STALE_SETTING_SECONDS,
    Backlog,
    LockWaits,
    Observer,
    SettingCache,
)
from services.router.flows.stores import STATUS_FRESH_SECONDS, StoreView


def test_the_oldest_unread_event_is_as_old_as_the_first_sight_of_it() -> None:
    backlog = Backlog()
    backlog.note(10.0, {0: (0, 5), 1: (0, 0)})
    backlog.note(20.0, {0: (0, 9), 1: (0, 3)})
    assert backlog.oldest(30.0, {0: 4}) == 20.0
    assert backlog.oldest(30.0, {0: 5}) == 10.0
    assert backlog.oldest(30.0, {0: 9}) == 10.0, "partition 1 waits"
    assert backlog.oldest(30.0, {0: 9, 1: 3}) == 0.0


def test_a_log_that_does_not_grow_adds_nothing_to_a_backlog() -> None:
    backlog = Backlog()
    for second in range(10):
        backlog.note(float(second), {0: (0, 7)})
    assert backlog.oldest(10.0, {0: 6}) == 10.0
    assert len(backlog.seen[0]) == 1


def test_a_long_backlog_keeps_its_oldest_sight_and_stays_small() -> None:
    backlog = Backlog()
    for second in range(10_000):
        backlog.note(float(second), {0: (0, second + 1)})
    assert backlog.oldest(10_000.0, {0: 0}) == 10_000.0
    assert len(backlog.seen[0]) <= 1000


def cached(shared: MemoryControlState, clock: ManualClock) -> tuple[SettingCache, MemoryControlStore]:
    control = MemoryControlStore(shared, clock=clock)
    return SettingCache(control, clock), control


async def test_before_the_first_answer_everything_goes_to_a_and_is_stale() -> None:
    cache, _ = cached(MemoryControlState(), ManualClock())
    assert (cache.current, cache.stale) == (Setting(), True)


async def test_the_last_good_setting_is_kept_and_marked_stale_while_the_control_store_is_away() -> None:
    cache, control = cached(MemoryControlState(), ManualClock())
    setting = await cache.refresh()
    assert cache.stale is False
    control.reachable = False
    with pytest.raises(ControlUnavailable):
        await cache.refresh()
    assert (cache.current, cache.stale) == (setting, True)
    control.reachable = True
    await cache.refresh()
    assert cache.stale is False


async def test_a_setting_that_nobody_confirmed_for_long_is_stale() -> None:
    clock = ManualClock()
    cache, _ = cached(MemoryControlState(), clock)
    await cache.refresh()
    clock.advance(STALE_SETTING_SECONDS + 0.1)
    assert cache.stale is True


async def test_who_waits_for_a_change_is_woken_by_it() -> None:
    shared, clock = MemoryControlState(), ManualClock()
    cache, control = cached(shared, clock)
    before = await cache.refresh()
    waiting = asyncio.create_task(cache.changed(before, 10.0))
    await asyncio.sleep(0)
    assert await control.change(JournalEntry(0.0, "ann", "advance", "", before, advance(before, next_phase(before))))
    await cache.refresh()
    assert (await waiting).phase is Phase.SHADOW
    assert await cache.changed(before, 10.0) == cache.current, "a change that was before is not waited for"
    assert await cache.changed(cache.current, 0.0) == cache.current


async def test_what_was_committed_here_is_taken_up_at_once_but_never_goes_back() -> None:
    cache, _ = cached(MemoryControlState(), ManualClock())
    await cache.take(Setting(generation=5, phase=Phase.SHADOW))
    await cache.take(Setting(generation=4))
    assert cache.current.phase is Phase.SHADOW


@pytest.mark.parametrize(("age", "known"), [(STATUS_FRESH_SECONDS, True), (STATUS_FRESH_SECONDS + 0.1, False)])
def test_evidence_that_is_too_old_is_none(age: float, known: bool) -> None:
    clock = ManualClock()
    observer = Observer({}, None, clock)
    for store in Store:
        answer = GetStatusResponse(owned_records=3)
        observer._views[store] = StoreView(store, answer, clock.monotonic(), "", lag_events=1, lag_seconds=2.0)
    clock.advance(age)
    evidence = observer.evidence(Setting(), 1024, None)
    seen = (evidence.lag_seconds, evidence.parked, evidence.buckets_at_b, evidence.a_owned_records)
    assert seen == ((2.0, 0, 1024, 3) if known else (None,) * 4)


@dataclass
class Answering:
    """A client of B that answers with `status`."""

    status: GetStatusResponse
    store: Store = Store.B
    replication: Any = field(default_factory=lambda: SimpleNamespace(GetStatus=None))

    async def ask(self, *_: object) -> GetStatusResponse:
        return self.status


async def test_zeros_of_a_store_whose_database_does_not_answer_are_no_counts() -> None:
    client, clock = Answering(GetStatusResponse(serving=True, owned_records=3)), ManualClock()
    observer = Observer({Store.B: client}, None, clock)  # type: ignore[dict-item]
    await observer.poll()
    good = observer.view(Store.B)
    clock.advance(1.0)
    client.status = GetStatusResponse(uncounted=True, reason="its database is away")
    await observer.poll()
    view = observer.view(Store.B)
    assert (view.status, view.seen_at, view.trouble) == (good.status, good.seen_at, "its database is away")
    assert view.database_away and not view.reachable
    client.status = GetStatusResponse(serving=True, owned_records=4)
    await observer.poll()
    view = observer.view(Store.B)
    assert view.reachable and not view.database_away


async def test_a_fenced_store_is_known_by_its_last_answer() -> None:
    client = Answering(GetStatusResponse(fence_reason="a later state is known"))
    observer = Observer({Store.B: client}, None, ManualClock())  # type: ignore[dict-item]
    assert observer.fenced == set()
    await observer.poll()
    assert observer.fenced == {Store.B}


async def test_the_status_has_the_certificate_of_the_process_that_needs_a_new_one() -> None:
    near, far = (GetStatusResponse(process=str(days), certificate=Certificate(days=days)) for days in (5.0, 300.0))
    client = Answering(near)
    observer = Observer({Store.B: client}, None, ManualClock())  # type: ignore[dict-item]
    await observer.poll()
    client.status = far
    await observer.poll()
    status = observer.view(Store.B).status
    assert status is not None and status.certificate.days == 5.0


async def observed(clock: ManualClock, *, trouble: str = "", waiting: int = 0) -> tuple[Observer, StoreView, StoreView]:
    """Views of B, and of A whose outbox holds `waiting` changes: B's feed has read 3 of the log's 5 events."""
    log = MemoryEventLog(1, clock=clock)
    observer = Observer({}, log, clock)
    await log.append([Event("k", b"") for _ in range(5)])
    await observer.poll()
    b = GetStatusResponse(feed=Feed(next_offsets={0: 3}, trouble=trouble))
    a = GetStatusResponse(outbox=Outbox(entries=waiting, oldest_seconds=float(waiting)))
    now = clock.monotonic()
    return observer, StoreView(Store.B, b, now, trouble), StoreView(Store.A, a, now, "")


async def test_a_store_that_is_away_falls_behind_from_where_it_was_last_seen() -> None:
    clock = ManualClock()
    observer, b, a = await observed(clock, trouble="out of reach", waiting=1)
    clock.advance(10.0)
    seen = observer._with_lag(b, a, clock.monotonic())
    assert (seen.reachable, seen.lag_events, seen.lag_seconds) == (False, 2, 11.0)
    observer._views |= {Store.A: replace(a, lag_events=0, lag_seconds=0.0), Store.B: seen}
    evidence = observer.evidence(Setting(), None, None)
    assert evidence.lag_seconds is None


@pytest.mark.parametrize(("waiting", "seconds"), [(4, 4.0), (0, None)])
async def test_a_log_that_is_away_shows_as_the_age_of_what_waits_for_it(waiting: int, seconds: float | None) -> None:
    clock = ManualClock()
    observer, b, a = await observed(clock, waiting=waiting)
    caught_up = replace(b, status=GetStatusResponse(feed=Feed(next_offsets={0: 5}, trouble="no log")))
    observer._ends = None
    seen = observer._with_lag(caught_up, a, clock.monotonic())
    assert (seen.lag_events, seen.lag_seconds) == (None, seconds)


async def test_a_feed_in_trouble_with_nothing_to_show_has_no_known_lag() -> None:
    clock = ManualClock()
    observer, b, a = await observed(clock, waiting=4)
    stuck = replace(b, status=GetStatusResponse(feed=Feed(next_offsets={0: 5}, trouble="its offset is gone")))
    assert observer._with_lag(stuck, a, clock.monotonic()).lag_seconds is None


def test_waits_for_a_turn_are_those_of_all_processes_that_were_heard_of_lately() -> None:
    waits = LockWaits()
    assert waits.counts(0.0) is None
    waits.note(Locks(process="one", waits={0: 7, 3: 1}), 0.0)
    waits.note(Locks(process="two", waits={0: 2}), 20.0)
    waits.note(Locks(process="two", waits={0: 3}), 21.0)
    assert waits.counts(30.0) == {0: 10, 3: 1}
    assert waits.counts(30.1) == {0: 3}
    assert waits.counts(51.1) is None

"""Events that a store has not read are seen to be at risk before the log drops them."""

from __future__ import annotations

import pytest

from libs.clock import ManualClock
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event, LogUnavailable, Retention
from libs.ownership.model import Store
from libs.pb.baton.replication.v1.replication_pb2 import Feed, GetStatusResponse
from services.router.core.evidence import Evidence
from services.router.core.gates.data import retention_warning
from services.router.core.retention import Held, Risk, risk_of
from services.router.core.thresholds import Limits
from services.router.flows.feed.retention import HorizonWatch
from services.router.flows.stores import StoreView

DAY = 86_400.0


@pytest.mark.parametrize(
    ("held", "following", "old", "gone"),
    [
        (Held(0, 100, 0, by_size=False), {0: 0}, 0, 0),
        (Held(0, 100, 40, by_size=False), {0: 40}, 0, 0),
        (Held(0, 100, 40, by_size=False), {0: 39}, 1, 0),
        (Held(0, 100, 40, by_size=False), {}, 40, 0),
        (Held(0, 100, 0, by_size=True), {0: 0}, 0, 0),
        (Held(20, 100, 20, by_size=True), {0: 60}, 0, 0),
        (Held(20, 100, 20, by_size=True), {0: 59}, 1, 0),
        (Held(20, 100, 70, by_size=True), {0: 60}, 10, 0),
        (Held(20, 100, 20, by_size=False), {0: 19}, 1, 1),
        (Held(100, 100, 100, by_size=True), {0: 100}, 0, 0),
        (Held(100, 100, 100, by_size=True), {0: 90}, 10, 10),
        (Held(0, 100, 100, by_size=False), {0: 100}, 0, 0),
        (Held(0, 100, 120, by_size=False), {0: 100}, 0, 0),
    ],
)
def test_at_risk_is_what_is_not_read_of_the_older_half_of_what_the_log_keeps(
    held: Held, following: dict[int, int], old: int, gone: int
) -> None:
    assert risk_of("B", following, {0: held}) == Risk("B", old, gone)
    assert risk_of("B", {**following, 1: 5}, {0: held, 1: Held(0, 5, 0, True)}) == Risk("B", old, gone)


def test_a_store_that_has_read_what_may_be_dropped_soon_is_no_alert() -> None:
    read, behind = Risk("A", 0, 0), Risk("B", 1, 0)
    assert retention_warning(Evidence(risks=(read, read)), Limits()) == ""
    assert retention_warning(Evidence(risks=(read, behind)), Limits()) == str(behind)


class AgedLog(MemoryEventLog):
    """Says that it drops events after four days."""

    @property
    def retention(self) -> Retention:
        return Retention(4 * DAY, by_size=False)


class Known:
    """B was heard of once, when it had read so much; A never."""

    def __init__(self, following: dict[int, int]) -> None:
        self.following = following

    def view(self, store: Store) -> StoreView:
        if store is Store.A:
            return StoreView(store)
        status = GetStatusResponse(feed=Feed(next_offsets=self.following))
        return StoreView(store, status, 0.0, "away for days")


async def test_a_store_that_is_away_is_warned_of_when_half_of_the_time_is_over_that_the_log_keeps_its_events() -> None:
    clock = ManualClock()
    log, known = AgedLog(2, clock=clock), Known({0: 1})
    watch = HorizonWatch(known, log, clock)
    assert watch.evidence(Evidence()).risks is None, "the log was not looked at yet"
    await log.append([Event("a", b"")] * 3, partition=0)
    clock.advance(2 * DAY - 1)
    await log.append([Event("a", b"")] * 2, partition=0)
    await watch.look()
    assert watch.evidence(Evidence()).risks == (Risk("B", 0, 0),)
    clock.advance(2)
    await watch.look()
    assert watch.evidence(Evidence()).risks == (Risk("B", 2, 0),)
    known.following = {0: 3}
    assert watch.evidence(Evidence()).risks == (Risk("B", 0, 0),), "it is back and has read them"
    log.reachable = False
    with pytest.raises(LogUnavailable):
        await watch.look()
    known.following = {0: 0}
    assert watch.evidence(Evidence()).risks == (Risk("B", 3, 0),), "what was known of the log stays"


class _SetBack(ManualClock):
    """After a while the wall clock is set back."""

    back_seconds = 0.0

    def now(self) -> float:
        return self.seconds - self.back_seconds


async def test_a_clock_that_is_set_back_makes_no_event_safer() -> None:
    clock, kept = _SetBack(), ManualClock()
    log = AgedLog(1, clock=kept)
    watch = HorizonWatch(Known({0: 0}), log, clock)
    await log.append([Event("a", b"")])
    clock.advance(2 * DAY + 1)
    clock.back_seconds = DAY
    await watch.look()
    assert watch.evidence(Evidence()).risks == (Risk("B", 1, 0),)


async def test_a_log_that_drops_for_its_size_warns_from_the_first_time_on() -> None:
    clock = ManualClock()
    log = MemoryEventLog(1, retained=10, clock=clock)
    watch = HorizonWatch(Known({0: 2}), log, clock)
    for count, risk in ((10, Risk("B", 0, 0)), (2, Risk("B", 5, 0)), (1, Risk("B", 6, 1))):
        await log.append([Event("a", b"")] * count)
        await watch.look()
        assert watch.evidence(Evidence()).risks == (risk,)

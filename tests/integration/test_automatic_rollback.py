"""Measurements travel between routers, one of them decides on a rollback, and the status shows it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
import pytest

from libs.clock import ManualClock
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2 import GetStatusResponse
from libs.rpc.errors import reason_of
from services.router.control.leases import Lease
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.control.port import AUTOMATIC, JournalEntry, LastRollback, Report
from services.router.core.automatic_rollback import PAUSE, Action
from services.router.core.gates import Evidence, Limits
from services.router.core.measure import Counts, Meter, ShadowCounts, total
from services.router.core.phase import Phase, Setting
from services.router.flows.steering.automatic_rollback import LEASE_NAME, LEASE_SECONDS, AutomaticRollback
from services.router.flows.steering.measure import FRESH_SECONDS, Measurement, Sources
from services.router.flows.steering.migration import BATON, Decision, Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.steering.report import Measured, OldClient
from services.router.flows.stores import StoreView
from services.router.flows.traffic import Totals
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import step
from tests.waiting import eventually

A, B = Store.A, Store.B
ANN = Decision("ann", "a test")
OVERRIDE = Decision("ann", "a test", override=True)


@dataclass
class Views:
    """A router's views of its stores: A serves until a test changes it."""

    a_serves: bool = True
    trouble: str = ""

    def view(self, store: Store) -> StoreView:
        return StoreView(store, GetStatusResponse(serving=self.a_serves), 0.0, self.trouble)


class Router:
    """One router's measurements and automatic rollback, over a shared control store."""

    def __init__(self, name: str, shared: MemoryControlState, clock: ManualClock) -> None:
        self.clock = clock
        self.control = MemoryControlStore(shared, clock=clock)
        self.cache = SettingCache(self.control, clock)
        self.meter = Meter()
        self.shadow = (0, ShadowCounts())
        self.measurement = Measurement(self.control, self.meter, name, clock, Sources(lambda: self.shadow))
        self.migration = Migration(self.control, self.cache, lambda setting: Evidence(), clock)
        self.views = Views()
        self.automatic = AutomaticRollback(
            self.control, self.migration, self.measurement, self.cache, self.views, clock, name, Limits()
        )

    def serve(self, store: Store, calls: int, faults: int = 0) -> None:
        for number in range(calls):
            self.meter.add(store, "update", False, 0.002, number < faults, self.clock.monotonic())


@dataclass
class Routers:
    """Two routers in CUTOVER, and the time that passes for both."""

    clock: ManualClock = field(default_factory=ManualClock)
    shared: MemoryControlState = field(default_factory=MemoryControlState)

    def __post_init__(self) -> None:
        self.shared.setting = Setting(generation=5, phase=Phase.CUTOVER)
        self.one, self.other = (Router(name, self.shared, self.clock) for name in ("r-1", "r-2"))

    async def seconds(self, count: int, *, calls: int = 4, faults: int = 0) -> list[Action]:
        """Each router sends so many calls to B in each second. Returns the actions decided after each."""
        rulings = []
        for _ in range(count):
            for router in (self.one, self.other):
                await router.cache.refresh()
                router.serve(B, calls, faults)
            self.clock.advance(1.0)
            for router in (self.one, self.other):
                await router.measurement.exchange()
            await self.one.measurement.exchange()
            found = [verdict for router in (self.one, self.other) if (verdict := await router.automatic.look())]
            rulings += [verdict.action for verdict in found]
        return rulings

    @property
    def automatic(self) -> list[JournalEntry]:
        return [entry for entry in self.shared.journal if entry.action == AUTOMATIC]


@pytest.fixture
def routers() -> Routers:
    return Routers()


async def test_the_counts_of_all_routers_are_summed(routers: Routers) -> None:
    await routers.seconds(5, calls=4, faults=1)
    for router in (routers.one, routers.other):
        newest = router.measurement.seconds()[:3]
        assert newest == ((Counts(), Counts(8, 2)),) * 3
        assert router.measurement.evidence(Evidence()).b_calls is not None


async def test_the_calls_that_a_fenced_store_fails_do_not_slow_its_recovery(routers: Routers) -> None:
    routers.one.serve(A, 30, 30)
    await routers.seconds(2, faults=1)
    everything, without_a = (routers.one.measurement.load(None, fenced) for fenced in ((), {A}))
    assert (everything.calls - without_a.calls, everything.faults - without_a.faults) == (30, 30)
    assert (without_a.calls, without_a.faults) == (16, 4)


async def test_a_router_that_is_gone_fades_out(routers: Routers) -> None:
    await routers.seconds(5, calls=4)
    routers.clock.advance(FRESH_SECONDS + 1)
    await routers.one.measurement.exchange()
    assert routers.one.measurement.recent(B) == Counts(20), "the other one is not known now"
    assert total(b for _, b in routers.one.measurement.seconds()) == Counts(40), "but what it said of then stays"
    routers.clock.advance(60)
    await routers.one.measurement.exchange()
    assert total(b for _, b in routers.one.measurement.seconds()) == Counts()


async def test_a_report_that_never_changes_is_not_taken_for_a_router(routers: Routers) -> None:
    await routers.other.control.report(Report("long-gone", 1, routers.other.measurement.mine().to_json()))
    await routers.seconds(3, calls=1)
    late = Router("r-3", routers.shared, routers.clock)
    await late.measurement.exchange()
    assert total(b for _, b in late.measurement.seconds()) == Counts(), "how old they are is not known yet"


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"seconds": 3}), "\x00"])
async def test_a_report_that_cannot_be_read_is_left_out(routers: Routers, text: str) -> None:
    for number in (1, 2, 3):
        await routers.one.control.report(Report("newer", number, text))
        await routers.seconds(1, calls=1)
    assert routers.one.measurement.recent(B) == Counts(6)


async def test_while_the_control_store_is_away_nothing_is_known_of_all(routers: Routers) -> None:
    await routers.seconds(2)
    assert routers.one.measurement.evidence(Evidence()).b_calls == Counts(16)
    routers.clock.advance(FRESH_SECONDS + 0.1)
    assert routers.one.measurement.evidence(Evidence()).b_calls is None


async def test_compared_reads_of_an_older_run_do_not_count(routers: Routers) -> None:
    routers.one.shadow = (7, ShadowCounts(5, 5))
    routers.other.shadow = (6, ShadowCounts(100, 100))
    await routers.seconds(2)
    assert routers.one.measurement.evidence(Evidence()).shadow == ShadowCounts(5, 5)
    routers.other.shadow = (7, ShadowCounts(10, 9, mismatch=1))
    await routers.seconds(1)
    assert routers.one.measurement.evidence(Evidence()).shadow == ShadowCounts(15, 14, mismatch=1)


async def test_a_failing_b_is_left_after_half_a_minute_and_the_journal_says_why(routers: Routers) -> None:
    await routers.seconds(10)
    rulings = await routers.seconds(29, faults=1)
    assert set(rulings) == {Action.KEEP} and routers.automatic == []
    rulings = await routers.seconds(4, faults=1)
    assert Action.ROLL_BACK in rulings
    (entry,) = routers.automatic
    assert (entry.actor, entry.before.phase, entry.after.phase) == (BATON, Phase.CUTOVER, Phase.DUAL_WRITE)
    assert entry.after.hold and "25.0%" in entry.reason
    assert routers.one.automatic.last == entry and routers.one.automatic.alarms + routers.other.automatic.alarms == 1
    await routers.seconds(40, faults=1)
    assert routers.automatic == [entry], "once held, it stays as it is"


async def test_a_rollback_shows_its_reason_at_once(routers: Routers) -> None:
    await routers.seconds(10)
    for _ in range(40):
        await routers.seconds(1, faults=1)
        if routers.automatic:
            break
    (automatic,) = [router.automatic for router in (routers.one, routers.other) if router.automatic.alarms]
    assert automatic.last == routers.automatic[0]


@pytest.mark.parametrize("days", [-1.0, 1.0])
async def test_the_pause_between_two_rollbacks_is_counted_by_no_wall_clock(routers: Routers, days: float) -> None:
    """The router that made the first one had a wrong clock, or the clock jumped since."""
    await routers.seconds(40, faults=1)
    (entry,) = routers.automatic
    routers.shared.rollback = LastRollback(replace(entry, time_seconds=entry.time_seconds + 86400 * days), 0.0)
    for router in (routers.one, routers.other):
        router.automatic._known_of = None
    await routers.one.cache.refresh()
    await routers.one.migration.lift_hold(ANN)
    for _ in range(2):
        await step(routers.one.migration, OVERRIDE)
    pause = int(Limits().overlaid(routers.one.cache.current.limits)[PAUSE])
    rulings = await routers.seconds(pause - 40, faults=1)
    assert Action.ALERT in rulings and Action.ROLL_BACK not in rulings
    assert Action.ROLL_BACK in await routers.seconds(80, faults=1)


async def test_when_the_deciding_router_dies_another_decides_with_the_same_history(routers: Routers) -> None:
    await routers.seconds(30, faults=1)
    for _ in range(int(LEASE_SECONDS) + 2):
        routers.other.serve(B, 8, 2)
        routers.clock.advance(1.0)
        await routers.other.cache.refresh()
        await routers.other.measurement.exchange()
        await routers.other.automatic.look()
    assert len(routers.automatic) == 1


async def test_soon_after_a_rollback_a_person_decides(routers: Routers) -> None:
    await routers.seconds(37, faults=1)
    for router in (routers.one, routers.other):
        await router.cache.refresh()
    await routers.one.migration.lift_hold(ANN)
    await routers.one.migration.set_canary(ANN, 500)
    rulings = await routers.seconds(29, faults=1)
    assert set(rulings) == {Action.KEEP}, "what was before the hold was lifted is not held against B again"
    rulings = await routers.seconds(10, faults=1)
    assert rulings[-1] is Action.ALERT and len(routers.automatic) == 1
    automatic = max((routers.one.automatic, routers.other.automatic), key=lambda one: one.alarms)
    assert "operators decide" in automatic.alarm and automatic.alarms == 2, "said once, not every second"
    await routers.seconds(30)
    assert automatic.alarm == ""
    await routers.seconds(600)
    await routers.seconds(40, faults=1)
    assert len(routers.automatic) == 2


async def test_nobody_is_sent_to_an_a_that_does_not_serve(routers: Routers) -> None:
    routers.one.views.a_serves = routers.other.views.a_serves = False
    rulings = await routers.seconds(35, faults=4)
    assert rulings[-1] is Action.ALERT and routers.automatic == []


async def test_an_old_status_of_a_sends_no_traffic_there(routers: Routers) -> None:
    routers.one.views.trouble = routers.other.views.trouble = "UNAVAILABLE"
    rulings = await routers.seconds(35, faults=4)
    assert rulings[-1] is Action.ALERT and routers.automatic == []


async def test_one_router_decides_at_a_time(routers: Routers) -> None:
    assert len(await routers.seconds(10)) == 10


async def test_a_router_that_has_just_started_decides_by_the_reports_of_the_others(routers: Routers) -> None:
    await routers.seconds(30, calls=8, faults=2)
    late = Router("r-3", routers.shared, routers.clock)
    for _ in range(int(LEASE_SECONDS) + 2):
        routers.other.serve(B, 8, 2)
        routers.clock.advance(1.0)
        await routers.other.measurement.exchange()
        await late.cache.refresh()
        await late.measurement.exchange()
        await late.automatic.look()
    assert len(routers.automatic) == 1


async def test_every_router_shows_the_alarm_and_the_one_with_the_lease_counts_it(routers: Routers) -> None:
    routers.one.views.a_serves = routers.other.views.a_serves = False
    await routers.seconds(36, faults=4)
    both = routers.one.automatic, routers.other.automatic
    assert all("does not serve either" in automatic.alarm for automatic in both)
    assert sorted(automatic.alarms for automatic in both) == [0, 1]
    automatic = max(both, key=lambda one: one.alarms)
    routers.shared.leases[LEASE_NAME] = Lease("r-3", 1, LEASE_SECONDS)
    routers.one.views.a_serves = routers.other.views.a_serves = True
    assert await automatic.look() is None
    assert (automatic.view, automatic.alarm) == ("another router decides", "")


async def test_the_limits_of_the_setting_are_in_force(routers: Routers) -> None:
    await routers.one.migration.set_limits(ANN, {"rollback_fault_percent": 30.0}, ())
    assert set(await routers.seconds(40, faults=1)) == {Action.KEEP}, "a quarter of the calls may fail"
    await routers.one.migration.set_limits(ANN, {}, ("rollback_fault_percent",))
    assert Action.ROLL_BACK in await routers.seconds(2, faults=1)


async def test_the_control_store_keeps_how_long_routers_have_watched_since_a_rollback(routers: Routers) -> None:
    await routers.seconds(40, faults=1)
    await routers.seconds(20)

    def watched() -> float:
        assert routers.shared.rollback is not None
        return routers.shared.rollback.watched_seconds

    before = watched()
    assert 20 <= before <= 27
    routers.clock.advance(3600.0)
    await routers.seconds(1)
    assert before < watched() <= before + LEASE_SECONDS, "the time in which no router looked does not count"
    before, first = watched(), routers.one if routers.one.automatic._looked_at is not None else routers.other
    second = routers.other if first is routers.one else routers.one
    for deciding, waiting in ((second, first), (first, second)):
        routers.shared.leases.clear()
        for _ in range(10):
            routers.clock.advance(1.0)
            await deciding.automatic.look()
            await waiting.automatic.look()
    assert watched() == before + 18, "the first look of a router counts nothing: another one has counted until then"
    assert first.automatic._last == routers.shared.rollback
    await first.migration.set_limits(ANN, {"rollback_pause_seconds": watched() + 5}, ())
    before = watched()
    await routers.seconds(20)
    assert watched() == before + 5, "when the pause is over there is nothing to count"


async def test_a_setting_that_changed_meanwhile_is_decided_on_anew(routers: Routers) -> None:
    await routers.seconds(34, faults=1)
    stale = routers.one.cache.current
    await routers.other.migration.rollback(ANN, Phase.DUAL_READ)
    assert routers.one.cache.current == stale
    for _ in range(3):
        for router in (routers.one, routers.other):
            router.serve(B, 4, 1)
        routers.clock.advance(1.0)
        await routers.one.measurement.exchange()
        await routers.one.automatic.look()
    assert [entry.before.phase for entry in routers.automatic] == [Phase.DUAL_READ]


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        await eventually(lambda: running.flows.measurement.fresh)
        yield running


async def test_calls_are_measured_by_store_and_shown(controlled: ControlledSystem) -> None:
    await controlled.put(5)

    async def shown() -> bool:
        status = await controlled.control.GetStatus(pb.GetStatusRequest())
        return [calls.calls for calls in status.measured] == [5, 0] and status.measured[0].recent_calls == 5

    await eventually(shown)


async def test_the_status_says_what_blocks_the_next_step_and_what_to_do(controlled: ControlledSystem) -> None:
    await eventually(lambda: all(controlled.flows.observer.view(store).reachable for store in Store))
    status = await controlled.control.GetStatus(pb.GetStatusRequest())
    assert status.next == pb.PHASE_SHADOW
    assert "backfill FAIL: no backfill has finished" in status.blocked
    gates = {gate.name: gate for gate in status.gates}
    assert gates["backfill"].runbook == "baton backfill"
    assert (status.permille_at_b, status.rollback_cost.writes_lost, list(status.alerts)) == (0, 0, [])
    assert not status.HasField("last_automatic")


async def test_a_watch_shows_changes_as_they_come(controlled: ControlledSystem) -> None:
    watch: Any = controlled.control.WatchStatus(pb.WatchStatusRequest(interval_seconds=0.1), timeout=20)
    first = await watch.read()
    assert first.status.setting.generation == 1
    await step(controlled.flows.migration, Decision("ann", "by hand", override=True))
    seen = 1
    while seen == 1:
        seen = (await watch.read()).status.setting.generation
    assert seen == 2
    watch.cancel()


@pytest.mark.parametrize("seconds", [0.05, 61.0, -1.0, float("nan"), float("inf")])
async def test_an_interval_that_is_none_is_refused(controlled: ControlledSystem, seconds: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await controlled.control.WatchStatus(pb.WatchStatusRequest(interval_seconds=seconds), timeout=10).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value)[1]["field"] == "interval_seconds"


async def test_what_the_status_shows_is_summed_up_over_all_routers() -> None:
    shared, clock = MemoryControlState(), ManualClock()
    meters = [Meter(), Meter()]
    routers = []
    for number, meter in enumerate(meters, start=1):
        told = Totals((number, 10 * number), (1, 1), (0, number), number, 0, 5)
        old = [OldClient("cron", number, 10, 5.0 * number), OldClient(f"only-{number}", 1, 1, 1.0)]
        sources = Sources(
            totals=partial(Totals, *told), generation=partial(int, 7 + number), clients=partial(list, old)
        )
        control = MemoryControlStore(shared, clock=clock)
        routers.append(Measurement(control, meter, f"router-{number}", clock, sources))
    for _ in range(3):
        for meter, seconds in zip(meters, (0.001, 0.1), strict=True):
            meter.add(B, "get", True, seconds, False, clock.monotonic())
        clock.advance(1.0)
        for router in routers:
            await router.exchange()
    first = routers[0]
    assert first.totals() == Totals((3, 30), (2, 2), (0, 3), 3, 0, 10)
    assert [found[:2] for found in first.routers()] == [("router-1", 8), ("router-2", 9)]
    clients = {client.name: client for client in first.clients()}
    assert set(clients) == {"cron", "only-1", "only-2"}
    assert clients["cron"][1:] == (1, 20, 5.0)
    side = first.side(B)
    assert side.calls_per_second == pytest.approx(0.6, abs=0.11)
    assert side.p99_seconds is not None and side.p99_seconds > 0.05, "the slow router's calls count too"
    assert first.side(A).p99_seconds is None


async def test_the_report_of_a_router_of_the_release_before_counts_as_far_as_it_goes() -> None:
    clock = ManualClock()
    mine = Measurement(MemoryControlStore(MemoryControlState(), clock=clock), Meter(), "router-1", clock).mine()
    fields = json.loads(mine.to_json())
    for name in ("latencies", "totals", "generation", "clients"):
        del fields[name]
    older = Measured.from_json(json.dumps(fields))
    assert (older.totals, older.generation, dict(older.latencies), older.clients) == (Totals(), 0, {}, ())

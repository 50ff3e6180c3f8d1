"""Direct calls in a router's measurements: read from each process of the stores, and counted once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from libs.backend import calls
from libs.clock import ManualClock
from libs.errors import StoreUnavailable
from libs.ownership.model import BUCKETS, Store, bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.rpc import metadata
from libs.store.concurrency import Notifier
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.control.port import AUTOMATIC
from services.router.core.automatic_rollback import Action
from services.router.core.gates import Evidence, Limits
from services.router.core.measure import Counts, Meter
from services.router.core.phase import Phase, Setting
from services.router.core.routes import NO_ROUTES, Routes, RpcRoutes, Run
from services.router.flows.steering import direct_traffic
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.direct_traffic import KEPT_SECONDS, KNOWN_SECONDS, DirectTraffic
from services.router.flows.steering.measure import Measurement, answered_by_b
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import SettingCache
from services.router.flows.steering.report import Measured
from services.router.flows.stores import StoreClient, open_store
from tests.integration.test_automatic_rollback import Views
from tests.system.store import CONTRACT, OneStore, listening, new, refusal, running_store
from tests.waiting import eventually

A, B = Store.A, Store.B
GET, UPDATE = (f"/{CONTRACT.service}/{name}" for name in ("GetSandbox", "UpdateSandbox"))
NAME = "sandboxes/one"
MARK = ((metadata.BUCKET, str(bucket_of(NAME))),)
_STATUS = rpb.GetStatusRequest()
ALL = (Run(0, BUCKETS, A),)
HERE = Routes(3, (RpcRoutes(GET, ALL), RpcRoutes(UPDATE, ALL)))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers too."""
    monkeypatch.setattr(direct_traffic, "ANSWER_SECONDS", 20.0)


@dataclass
class Router:
    """A router's part of the exchange, and its measurements."""

    name: str
    store: StoreClient
    clock: ManualClock = field(default_factory=ManualClock)
    shared: MemoryControlState = field(default_factory=MemoryControlState)
    routes: Routes | None = HERE

    def __post_init__(self) -> None:
        self.meter = Meter()
        self.changes = Notifier()
        self.control = MemoryControlStore(self.shared, clock=self.clock)
        self.traffic = DirectTraffic(
            {A: self.store}, self.meter, self.clock, self.name, lambda: self.routes, lambda: False, self.changes
        )
        self.measurement = Measurement(self.control, Meter(), self.name, self.clock, direct=self.meter)

    async def seen(self) -> Counts:
        await self.traffic.sync(A)
        return self.meter.recent(A, self.clock.monotonic())


@asynccontextmanager
async def with_store(*stores: OneStore) -> AsyncIterator[StoreClient]:
    addresses = ",".join(at.internal.address for at in stores)
    async with open_store(A, addresses, None) as client:
        yield client


async def get(at: OneStore, times: int = 1) -> None:
    for _ in range(times):
        await at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=MARK)


async def test_a_store_learns_its_routes_and_reports_its_calls_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_store() as at, with_store(at) as client:
        await at.client.CreateSandbox(new("one"))
        router = Router("r-1", client)
        assert await router.seen() == Counts()
        assert at.direct.routes.has(GET, 0) and at.direct.routes.has(UPDATE, BUCKETS - 1)
        assert not at.direct.routes.has(f"/{CONTRACT.service}/DeleteSandbox", 0)
        await get(at, 5)
        await at.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME)), metadata=MARK)
        assert await router.seen() == Counts(6, 0)

        def fail(*_: object) -> None:
            raise StoreUnavailable("the disk is gone")

        monkeypatch.setattr(calls, "read_as_owner", fail)
        for _ in range(2):
            await refusal(at.client.GetSandbox(pb.GetSandboxRequest(name=NAME), metadata=MARK))
        assert await router.seen() == Counts(8, 2)
        assert await router.seen() == Counts(8, 2), "nothing new"
        latencies = router.meter._minute
        assert {key: cell.latencies.total() for key, cell in latencies.items()} == {
            (A, "get", True): 5,
            (A, "update", False): 1,
        }
        assert router.meter.answered == Counter({A: 6})


async def test_a_router_that_gives_no_routes_says_so() -> None:
    async with running_store() as at, with_store(at) as client:
        router = Router("r-1", client, routes=NO_ROUTES)
        await router.seen()
        assert not at.direct.routes.has(GET, 0)
        router.routes = None
        await router.seen()
        assert at.direct.routes.has(GET, 0), "the owner decides"


async def test_several_routers_count_each_call_once_in_all_their_figures() -> None:
    async with running_store() as at, with_store(at) as client:
        await at.client.CreateSandbox(new("one"))
        one = Router("r-1", client)
        other = Router("r-2", client, one.clock, one.shared)
        routers = (one, other)
        for router in routers:
            await router.seen()
        await get(at, 20)
        for router in routers:
            await router.traffic.sync(A)
        one.clock.advance(1.0)
        for router in (*routers, *routers):
            await router.measurement.exchange()
        for router in routers:
            found = router.measurement
            assert found.recent(A) == Counts(20)
            assert found.seconds()[0][0] == Counts(20)
            assert found.side(A).direct_calls_per_second == found.side(A).calls_per_second == 2.0
            assert found.load(0.0).calls == 20
            assert found.side(A).p99_seconds is not None


async def test_a_router_that_the_stores_no_longer_answer_hides_no_fault_of_direct_calls() -> None:
    clock, shared = ManualClock(), MemoryControlStore(clock=ManualClock())
    meters = [Meter(), Meter()]
    blind, seeing = (
        Measurement(shared, Meter(), f"r-{number}", clock, direct=meter) for number, meter in enumerate(meters)
    )
    meters[0].add_reported(B, "get", True, Counts(10_000), Counter({5: 10_000}), clock.monotonic())
    clock.advance(90.0)
    meters[1].add_reported(B, "get", True, Counts(100, 60), Counter({5: 40}), clock.monotonic())
    clock.advance(1.0)
    for measurement in (blind, seeing) * 3:
        await measurement.exchange()
    for measurement in (blind, seeing):
        assert measurement.seconds()[0][1] == Counts(100, 60)


async def test_a_router_that_is_started_again_counts_no_call_again_and_another_one_remembers() -> None:
    async with running_store() as at, with_store(at) as client:
        await at.client.CreateSandbox(new("one"))
        one = Router("r-1", client)
        other = Router("r-2", client, one.clock, one.shared)
        await one.seen()
        await other.seen()
        at.clock.advance(30.0)
        one.clock.advance(30.0)
        await get(at, 20)
        await one.seen()
        again = Router("r-1", client, one.clock, one.shared)
        assert await again.seen() == Counts()
        await get(at, 3)
        assert await again.seen() == Counts(3)
        assert await other.seen() == Counts(23)
        for router in (again, other) * 2 + (again,):
            await router.measurement.exchange()
        for router in (again, other):
            assert router.measurement.recent(A) == Counts(23), router.name
        one.clock.advance(20.0)
        await again.measurement.exchange()
        assert again.measurement.recent(A) == Counts(3), "the other one is gone"


class Prepared:
    """A store whose processes answer as a test says."""

    store = A
    replication = rpb

    def __init__(self) -> None:
        self.answers: list[rpb.SyncDirectCallsResponse] = []

    async def ask(self, *_: object) -> rpb.SyncDirectCallsResponse:
        return self.answers.pop(0)

    def say(self, process: str, number: int, made: int, uptime_seconds: float = 100.0) -> None:
        counts = [rpb.DirectCalls(operation="get", is_read=True, calls=made, latencies={5: made})]
        self.answers.append(
            rpb.SyncDirectCallsResponse(process=process, number=number, calls=counts, uptime_seconds=uptime_seconds)
        )


async def test_a_process_that_is_started_again_is_counted_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpb, "SyncDirectCalls", None, raising=False)
    store = Prepared()
    router = Router("r-1", store)  # type: ignore[arg-type]
    router.clock.advance(5.0)
    store.say("first", 8, 100)
    assert await router.seen() == Counts(), "no call is known to be new"
    store.say("first", 9, 102)
    assert await router.seen() == Counts(2)
    router.clock.advance(20.0)
    store.say("next", 1, 3, uptime_seconds=1.0)
    assert await router.seen() == Counts(5)
    store.say("far", 4, 7, uptime_seconds=30.0)
    store.say("next", 2, 3)
    store.say("far", 5, 7)
    assert await router.seen() == Counts(5), "it has run for longer than this router has looked"


async def test_a_process_that_is_found_late_is_counted_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients resolve a name sooner than the router's channel to the store does."""
    monkeypatch.setattr(rpb, "SyncDirectCalls", None, raising=False)
    store = Prepared()
    router = Router("r-1", store)  # type: ignore[arg-type]
    router.clock.advance(KEPT_SECONDS + 5)
    store.say("late", 1, 3, uptime_seconds=KEPT_SECONDS - 1)
    assert await router.seen() == Counts(3)
    store.say("back", 8, 100, uptime_seconds=KEPT_SECONDS + 1)
    store.say("late", 2, 3, uptime_seconds=KEPT_SECONDS)
    store.say("back", 9, 100, uptime_seconds=KEPT_SECONDS + 1)
    assert await router.seen() == Counts(3), "it may have been seen before"


async def test_an_answer_that_was_overtaken_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpb, "SyncDirectCalls", None, raising=False)
    store = Prepared()
    router = Router("r-1", store)  # type: ignore[arg-type]
    for number, made in ((8, 100), (10, 104), (9, 103), (11, 105)):
        store.say("first", number, made)
        await router.seen()
    assert router.meter.recent(A, router.clock.monotonic()) == Counts(5)


async def test_a_process_that_the_first_questions_did_not_reach_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client calls take turns on the same channel."""
    monkeypatch.setattr(rpb, "SyncDirectCalls", None, raising=False)
    store = Prepared()
    router = Router("r-1", store)  # type: ignore[arg-type]
    store.say("one", 1, 0)
    await router.seen()
    store.say("two", 1, 0)
    store.say("one", 2, 0)
    store.say("one", 3, 0)
    await router.seen()
    for process, number in (("one", 4), ("one", 5), ("one", 6), ("two", 2), ("one", 7)):
        store.say(process, number, 5 if process == "two" else 0)
    assert await router.seen() == Counts(5)
    assert store.answers == []


async def test_all_processes_of_a_store_are_asked_also_while_client_calls_take_turns() -> None:
    async with running_store() as one, running_store() as two, with_store(one, two) as client:
        for at in (one, two):
            await at.client.CreateSandbox(new("one"))
        router = Router("r-1", client)

        async def both_know() -> bool:
            await router.traffic.sync(A)
            return len(router.traffic._answers[A]) == 2

        await eventually(both_know)
        for number in range(5):
            await get(one, 2)
            await get(two, 1)
            for _ in range(number % 2):
                await client.ask(client.replication.GetStatus, _STATUS, 5.0)
            assert await router.seen() == Counts(3 * (number + 1))
            for at in (one, two):
                at.clock.advance(1.0)


async def test_a_store_of_an_earlier_release_reports_nothing() -> None:
    async with listening(internal=True) as server, open_store(A, server.address, None) as client:
        router = Router("r-1", client)
        reporting: list[frozenset[Store]] = []
        router.traffic.take_reporting = reporting.append
        assert await router.seen() == Counts()
        assert reporting == [frozenset()], "it gets no direct calls"


async def test_a_store_that_no_longer_reports_its_direct_calls_gets_none() -> None:
    async with running_store() as at, with_store(at) as client:
        router = Router("r-1", client)
        reporting: list[frozenset[Store]] = []
        router.traffic.take_reporting = reporting.append
        await router.seen()
        await at.server.drain(0.0)
        router.clock.advance(KNOWN_SECONDS + 1)
        router.traffic._stores = {A: StoreClient(A, at.public, None)}
        await router.seen()
        assert reporting == [frozenset({A}), frozenset()]


def test_a_report_of_an_earlier_release_has_no_direct_calls() -> None:
    clock = ManualClock()
    meter = Meter()
    measurement = Measurement(MemoryControlStore(clock=clock), Meter(), "r-1", clock, direct=meter)
    assert measurement.mine().direct is None
    meter.add_reported(B, "get", True, Counts(7, 2), Counter({100: 5}), clock.monotonic())
    mine = measurement.mine()
    assert mine.direct is not None and mine.direct.answered_by_b == 5
    assert Measured.from_json(mine.to_json()) == mine
    fields = json.loads(mine.to_json())
    del fields["direct"]
    assert Measured.from_json(json.dumps(fields)).direct is None


async def test_gates_see_direct_calls_apart_from_those_through_routers() -> None:
    clock = ManualClock()
    direct, usual = Meter(), Meter()
    measurement = Measurement(MemoryControlStore(clock=clock), usual, "r-1", clock, direct=direct)
    now = clock.monotonic()
    for store in Store:
        direct.add_reported(store, "get", True, Counts(30), Counter({10: 30}), now)
        for _ in range(20):
            usual.add(store, "get", True, 0.1, False, now)
    await measurement.exchange()
    evidence = measurement.evidence(Evidence())
    assert evidence.b_calls == Counts(50)
    assert evidence.latencies is not None
    assert {one.operation: one.b.total() for one in evidence.latencies} == {"get": 20, "get (direct)": 30}
    assert answered_by_b(measurement) == {"r-1": 0, "direct calls, read by r-1": 30}


@pytest.mark.parametrize("share", [0.0, 0.2])
async def test_faults_of_direct_calls_alone_roll_back(share: float) -> None:
    """No call comes through the two routers, and both read the same processes."""
    clock, shared = ManualClock(), MemoryControlState()
    shared.setting = Setting(generation=5, phase=Phase.CUTOVER)
    found: list[Action] = []
    meters = (Meter(), Meter())
    looking = []
    for name, meter in zip(("r-1", "r-2"), meters, strict=True):
        control = MemoryControlStore(shared, clock=clock)
        cache = SettingCache(control, clock)
        measurement = Measurement(control, Meter(), name, clock, direct=meter)
        migration = Migration(control, cache, lambda _: Evidence(), clock)
        limits = Limits()
        judge = AutomaticRollback(control, migration, measurement, cache, Views(), clock, name, limits)
        looking.append((cache, measurement, judge))
    for second in range(45):
        for meter in meters:
            meter.add_reported(B, "get", True, Counts(10, int(10 * share)), Counter(), clock.monotonic())
        clock.advance(1.0)
        for cache, measurement, judge in looking:
            await cache.refresh()
            await measurement.exchange()
            outcome = await judge.look()
            found += [outcome.action] if outcome is not None else []
        if Action.ROLL_BACK in found:
            assert second < 36
            break
    rollbacks = [entry for entry in shared.journal if entry.action == AUTOMATIC]
    assert len(rollbacks) == (1 if share else 0)
    if share:
        assert "60 server faults in 300 calls" in rollbacks[0].reason, "each call counts once"

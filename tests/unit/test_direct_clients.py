"""Direct calls to the old service: their record, and the gate that waits for their end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.clock import ManualClock
from libs.contract.schemas import SchemaVersions
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2
from libs.pb.baton.replication.v1 import replication_pb2
from libs.rpc.clients import Clients
from services.router.api.status import add_clients
from services.router.cli.lines import clients_lines
from services.router.cli.views import client_view
from services.router.control.memory import MemoryControlStore
from services.router.core.clients import GAP_SECONDS, DirectClients, ProcessReport, from_json, looked
from services.router.core.gates import GATES, Evidence, Limits, Verdict, check
from services.router.flows.steering.clients import NAME, ClientWatch
from services.router.flows.steering.report import old_clients
from services.router.flows.stores import StoreView

DAY = 86_400.0


def test_a_process_tells_of_the_time_since_it_began() -> None:
    assert looked(None, ProcessReport("p", 3600.0), None) == DirectClients("p", 3600.0, 3600.0)
    after = looked(None, ProcessReport("p", 3600.0, ("billing", 60.0)), None)
    assert after == DirectClients("p", 3600.0, 3600.0, 60.0, "billing")


def test_a_look_now_and_then_misses_nothing_as_long_as_the_process_lives() -> None:
    before = DirectClients("p", 8 * DAY, 9 * DAY, 2 * DAY, "billing")
    after = replace(before, uptime_seconds=10 * DAY, watched_seconds=11 * DAY, idle_seconds=4 * DAY)
    assert looked(before, ProcessReport("p", 10 * DAY), None) == after, (
        "a router that has just started knows it as well"
    )


def test_routers_that_look_at_the_same_time_count_no_second_twice() -> None:
    before = DirectClients("p", 100.0, 100.0)
    first = looked(before, ProcessReport("p", 105.0), 5.0)
    assert looked(first, ProcessReport("p", 105.0), 5.0) == first
    assert looked(first, ProcessReport("p", 104.0), 5.0) == first, "a look that is late takes nothing away"


@pytest.mark.parametrize(
    ("unseen_seconds", "goes_on"), [(100 + GAP_SECONDS, True), (101 + GAP_SECONDS, False), (None, False)]
)
def test_a_restart_does_not_end_the_watch_and_a_longer_time_unseen_does(
    unseen_seconds: float | None, goes_on: bool
) -> None:
    before = DirectClients("p", 9 * DAY, 9 * DAY, 8 * DAY, "billing")
    after = looked(before, ProcessReport("q", 100.0), unseen_seconds)
    assert after.watched_seconds == (9 * DAY + 100 if goes_on else 100)
    assert (after.idle_seconds, after.name) == (8 * DAY + 100, "billing"), "the last caller is known all the same"


def test_a_late_look_at_the_former_process_is_ignored() -> None:
    before = looked(DirectClients("p", 9 * DAY, 9 * DAY), ProcessReport("q", 10.0), 15.0)
    assert looked(before, ProcessReport("p", 9 * DAY), 5.0) == before


def test_the_last_call_counts_wherever_it_was_seen() -> None:
    before = DirectClients("p", DAY, DAY, 50.0, "billing")
    assert looked(before, ProcessReport("p", DAY + 10, ("other", 61.0)), 10.0).name == "billing"
    assert looked(before, ProcessReport("p", DAY + 10, ("other", 59.0)), 10.0).name == "other"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"process": "p"}', '{"since": 1, "until": 2}'])
def test_what_another_version_has_written_is_left_out(text: str) -> None:
    assert from_json(text) is None


@pytest.mark.parametrize(
    ("watched", "idle", "verdict", "text"),
    [
        (None, None, Verdict.INCONCLUSIVE, "direct calls to A were not observed yet"),
        (3 * DAY, None, Verdict.INCONCLUSIVE, "none in the 3 days observed so far"),
        (28 * DAY, None, Verdict.PASS, "none in 28 days"),
        (60 * DAY, 28 * DAY, Verdict.PASS, "none in 28 days"),
        (60 * DAY, 27 * DAY, Verdict.FAIL, "'billing' called A directly 27 days ago"),
        (None, 5.0, Verdict.FAIL, "'billing' called A directly 5 s ago"),
    ],
)
def test_the_gate_asks_for_four_weeks_without_a_direct_call(
    watched: float | None, idle: float | None, verdict: Verdict, text: str
) -> None:
    evidence = Evidence(clients_watched_seconds=watched, client_idle_seconds=idle, client_name="billing")
    result = GATES["no-active-clients"].result(evidence, Limits())
    assert (result.verdict, result.evidence, result.threshold) == (verdict, text, "none for 28 days")


class Views:
    """A that was asked just now."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.status: replication_pb2.GetStatusResponse | None = replication_pb2.GetStatusResponse()
        self.status.vitals.start_id = "p"

    def view(self, store: Store) -> StoreView:
        assert store is Store.A
        return StoreView(store, self.status, self.clock.monotonic() if self.status else None, "")


async def test_what_is_known_survives_the_router() -> None:
    clock, memory = ManualClock(), MemoryControlStore()
    views = Views(clock)
    assert views.status is not None
    views.status.vitals.uptime_seconds = 2 * DAY
    views.status.clients.add(name="billing", idle_seconds=DAY)
    views.status.clients.add(name="older", idle_seconds=1.5 * DAY)
    await ClientWatch(views, memory, clock).look()
    views.status = None
    other = ClientWatch(views, memory, clock)
    assert other.evidence(Evidence()) == Evidence()
    await other.look()
    found = other.evidence(Evidence())
    assert (found.clients_watched_seconds, found.client_idle_seconds, found.client_name) == (2 * DAY, DAY, "billing")


async def test_while_a_is_away_nothing_is_learned() -> None:
    clock, memory = ManualClock(), MemoryControlStore()
    views = Views(clock)
    views.status = None
    watch = ClientWatch(views, memory, clock)
    await watch.look()
    assert watch.known is None
    await memory.remember(NAME, DirectClients("p", 1.0, 2.0).to_json())
    await watch.look()
    assert watch.known == DirectClients("p", 1.0, 2.0)


class WrongClock(ManualClock):
    """A clock whose time of day is not its monotonic time."""

    ahead_seconds = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_seconds


async def test_a_router_clock_that_jumps_ahead_lengthens_no_watch() -> None:
    clock, memory = WrongClock(), MemoryControlStore()
    views = Views(clock)
    assert views.status is not None
    views.status.vitals.uptime_seconds = 100.0
    watch = ClientWatch(views, memory, clock)
    await watch.look()
    clock.ahead_seconds = 40 * DAY
    for start_id, uptime in (("p", 105.0), ("q", 1.0)):
        clock.advance(5.0)
        views.status.vitals.start_id, views.status.vitals.uptime_seconds = start_id, uptime
        await watch.look()
    evidence = watch.evidence(Evidence())
    assert evidence.clients_watched_seconds == 106.0
    (result,) = check(["no-active-clients"], evidence)
    assert result.verdict is Verdict.INCONCLUSIVE


async def test_a_router_that_did_not_live_through_a_gap_begins_the_watch_again() -> None:
    clock, memory = ManualClock(), MemoryControlStore()
    views = Views(clock)
    assert views.status is not None
    views.status.vitals.uptime_seconds = 30 * DAY
    witness = ClientWatch(views, memory, clock)
    await witness.look()
    clock.advance(10.0)
    views.status.vitals.start_id, views.status.vitals.uptime_seconds = "q", 5.0
    newcomer = ClientWatch(views, memory, clock)
    await newcomer.look()
    assert newcomer.evidence(Evidence()).clients_watched_seconds == 5.0


async def test_a_process_of_an_earlier_release_teaches_nothing() -> None:
    clock, memory = ManualClock(), MemoryControlStore()
    views = Views(clock)
    assert views.status is not None
    views.status.vitals.start_id, views.status.vitals.uptime_seconds = "", 30 * DAY
    watch = ClientWatch(views, memory, clock)
    await watch.look()
    assert watch.evidence(Evidence()) == Evidence()


def test_the_status_lists_direct_and_old_clients() -> None:
    clock = ManualClock()
    views = Views(clock)
    assert views.status is not None
    views.status.clients.add(name="billing", schema_version=1, calls=3, idle_seconds=2.0)
    own = Clients(SchemaVersions("version", 1, 2), clock)
    own._count("reports", 1)
    clock.advance(7.0)
    answer = control_pb2.GetStatusResponse()
    add_clients(answer, EitherStore(views), old_clients(own, clock))
    listed = [client_view(client) for client in answer.clients]
    assert [(client["name"], client["at"], client["idle_seconds"]) for client in listed] == [
        ("billing", "store A", 2.0),
        ("reports", "router", 7.0),
    ]
    lines = clients_lines([*listed, *listed, *listed]).splitlines()
    assert lines[0] == "billing, at the listener of store A, schema version 1: 3 calls, the last one 2 s ago"
    assert lines[-2:] == [
        "reports, at the router, schema version 1: 1 calls, the last one 7 s ago",
        "and 1 more: baton clients",
    ]
    assert clients_lines([]) == ""


class EitherStore:
    """B has no status."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def view(self, store: Store) -> StoreView:
        return self.views.view(store) if store is Store.A else StoreView(store)

"""Walks of the canary, rehearsals and the rollback of one operation, over a running system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import grpc
import pytest

from libs.errors import InvalidField
from libs.eventlog.port import Event
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.control.port import Progress
from services.router.core.evidence import Evidence
from services.router.core.measure import Meter
from services.router.core.phase import IllegalMove, Phase
from services.router.flows.jobs.canary import CanaryAuto, Sights, WalkUnderWay
from services.router.flows.jobs.rehearsal import JOB, LEASE, RehearsalUnderWay, Result, result_of
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.migration import Decision
from services.router.flows.traffic import Answered
from tests.contracts.pb.toy import shelf_pb2
from tests.panel import Panel, running_loops, running_panel
from tests.system import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
BY_ANN = Decision("ann", "a try")
RECORDS = 20

TWO_STEPS = """
patience_seconds = 30
[[step]]
percent = 10
gates = ["parked"]
[[step]]
percent = 100
"""
NEVER_ENDS = "[[step]]\npercent = 10\nminimum_samples = 1000000\n[[step]]\npercent = 20"


@pytest.fixture
async def panel() -> AsyncIterator[Panel]:
    async with running_panel() as running:
        await eventually(lambda: running.parts.observer.view(Store.B).reachable)
        yield running


async def go_to(panel: Panel, phase: Phase, permille: int = 0) -> None:
    while panel.parts.cache.current.phase is not phase:
        await step(panel.parts.migration, BY_HAND)
    if permille:
        await panel.parts.migration.set_canary(BY_HAND, permille)
    await eventually(lambda: panel.parts.mover.settled, 20.0)


async def status(panel: Panel) -> pb.GetStatusResponse:
    return await panel.control.GetStatus(pb.GetStatusRequest())


async def ended(panel: Panel) -> Progress:
    """The walk, when it has ended."""
    walk = panel.parts.maneuvers.canary_auto
    await eventually(lambda: walk.progress.finished_seconds and not walk.progress.running, 20.0)
    return walk.progress


async def rehearsed(panel: Panel) -> Result:
    """What came of the rehearsal that is under way."""

    def result() -> Result | None:
        rehearsals = panel.parts.maneuvers.rehearsals
        return None if rehearsals.progress.running else rehearsals.last

    found = await eventually(result, 20.0)
    assert found is not None
    return found


@asynccontextmanager
async def traffic(panel: Panel) -> AsyncIterator[list[grpc.aio.AioRpcError]]:
    """Reads and writes of the first records, all the time; the failures."""
    failures: list[grpc.aio.AioRpcError] = []

    async def call() -> None:
        while True:
            for number in range(RECORDS):
                path = f"shelf/r/{number:05}"
                look = shelf_pb2.LookOrder(path=path).SerializeToString()
                lend = shelf_pb2.LendOrder(path=path, reader="ann", token=str(uuid4())).SerializeToString()
                try:
                    await panel.system.client.multi_callable("/toy.Shelf/Look")(look, timeout=5)
                    await panel.system.client.multi_callable("/toy.Shelf/Lend")(lend, timeout=5)
                except grpc.aio.AioRpcError as error:
                    failures.append(error)

    task = asyncio.create_task(call())
    try:
        yield failures
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_walk_goes_step_by_step_to_its_end_and_journals_each(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await panel.parts.maneuvers.canary_auto.start(BY_ANN, TWO_STEPS)
    walk = await ended(panel)
    assert (walk.done, walk.total, walk.note.partition(":")[0]) == (2, 2, "done")
    assert panel.parts.cache.current.canary_permille == 1000
    newest, before = [entry for entry in await panel.parts.migration.journal(10) if entry.action == "canary"]
    assert (newest.after.canary_permille, before.after.canary_permille) == (1000, 100)
    assert (newest.actor, newest.reason) == ("ann", "canary auto, step 2 of 2; a try")
    answer = await status(panel)
    assert (answer.canary_auto.running, answer.canary_auto.done) == (False, 2)


async def test_only_calls_that_b_answers_at_a_step_count_for_it(panel: Panel) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_WRITE, 500)
    plan = "[[step]]\npercent = 50\nminimum_samples = 20"
    await panel.parts.maneuvers.canary_auto.start(BY_ANN, plan)
    await eventually(lambda: "B has answered 0 of 20 calls" in panel.parts.maneuvers.canary_auto.progress.note, 20.0)
    async with traffic(panel) as failures:
        assert (await ended(panel)).note.startswith("done")
    assert not failures


async def test_a_gate_that_fails_takes_the_canary_back_and_says_why(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    plan = '[[step]]\npercent = 10\nminimum_samples = 1000000\ngates = ["parked"]'
    await panel.parts.maneuvers.canary_auto.start(BY_ANN, plan)
    await eventually(lambda: panel.parts.cache.current.canary_permille == 100, 20.0)
    await panel.system.log.append([Event("nonsense", b"?")])
    walk = await ended(panel)
    assert walk.note.startswith("went back to 0 %: at 10 % parked FAIL: the number of parked events is ")
    assert panel.parts.cache.current.canary_permille == 0
    newest = (await panel.parts.migration.journal(1))[0]
    assert (newest.action, newest.actor) == ("canary", "ann")
    assert "parked FAIL" in newest.reason


async def test_one_walk_at_a_time_and_a_person_ends_it(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    auto = panel.parts.maneuvers.canary_auto
    await auto.start(BY_ANN, NEVER_ENDS)
    with pytest.raises(WalkUnderWay):
        await auto.start(BY_ANN, TWO_STEPS)
    await eventually(lambda: panel.parts.cache.current.canary_permille == 100, 20.0)
    await auto.stop("bob")
    assert (await ended(panel)).note == "stopped by bob: the canary stays as it is"
    assert panel.parts.cache.current.canary_permille == 100
    await auto.start(BY_ANN, TWO_STEPS)
    assert (await ended(panel)).note.startswith("done")


async def test_what_a_person_sets_ends_the_walk(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await panel.parts.maneuvers.canary_auto.start(BY_ANN, NEVER_ENDS)
    await eventually(lambda: panel.parts.cache.current.canary_permille == 100, 20.0)
    await panel.parts.migration.rollback(BY_HAND, Phase.OFF)
    assert "stopped: the phase was changed to OFF" in (await ended(panel)).note
    assert panel.parts.cache.current.hold


async def test_a_wrong_plan_or_phase_is_refused_and_nothing_changes(panel: Panel) -> None:
    auto = panel.parts.maneuvers.canary_auto
    with pytest.raises(IllegalMove, match="steers only in DUAL_WRITE"):
        await auto.start(BY_ANN, TWO_STEPS)
    await go_to(panel, Phase.DUAL_WRITE)
    with pytest.raises(InvalidField, match="step 1: procent"):
        await auto.start(BY_ANN, "[[step]]\nprocent = 5")
    assert await panel.store.progress("canary auto") is None
    assert panel.parts.cache.current.canary_permille == 0


async def test_another_router_goes_on_with_a_walk_whose_router_died(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    parts = panel.parts
    sights = Sights(lambda setting: Evidence(parked=0), dict, lambda: parts.mover.settled)
    first = CanaryAuto(panel.store, parts.migration, parts.cache, sights, "router-0", parts.clock)
    assert await panel.store.lease("canary auto", "router-0", 1.0)
    async with running_loops(first.loop):
        await first.start(BY_ANN, TWO_STEPS.replace("patience_seconds = 30", "on_fail = 'hold'"))
        await eventually(lambda: parts.cache.current.canary_permille == 100, 20.0)
    # It never gave its lease up: the other one waits until that has stood still for its time.
    await panel.store.lease("canary auto", "router-0", 0.3)
    assert (await ended(panel)).note.startswith("done")
    assert parts.cache.current.canary_permille == 1000
    set_to = [entry.after.canary_permille for entry in await parts.migration.journal(20) if entry.action == "canary"]
    assert set_to == [1000, 100]


@pytest.mark.parametrize(("phase", "permille"), [(Phase.DUAL_WRITE, 500), (Phase.DUAL_READ, 0)])
async def test_a_rehearsal_moves_live_buckets_there_and_back(panel: Panel, phase: Phase, permille: int) -> None:
    await panel.put(RECORDS)
    await go_to(panel, phase, permille)
    before = {store: await panel.system.ports(store).inspection.census() for store in Store}
    async with traffic(panel) as failures:
        await panel.parts.maneuvers.rehearsals.start(BY_ANN, 4)
        result = await rehearsed(panel)
    assert (result.passed, result.by, len(result.buckets)) == (True, "ann", 4)
    assert result.records >= 4, "buckets with records are rehearsed before empty ones"
    assert result.calls > 0, "no call was seen: the rehearsal shows nothing"
    assert min(result.there_seconds, result.back_seconds) > 0
    assert not failures
    await eventually(lambda: panel.parts.mover.settled, 20.0)
    assert {store: await panel.system.ports(store).inspection.census() for store in Store} == before
    actions = [entry.action for entry in await panel.parts.migration.journal(2)]
    assert actions == ["rehearsal ended", "rehearsal begun"]
    answer = await status(panel)
    assert (answer.last_rehearsal.passed, answer.last_rehearsal.records) == (True, result.records)
    assert result_of(await panel.store.progress(JOB)) == result


async def test_during_a_rehearsal_calls_go_where_their_bucket_is(panel: Panel) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_READ)
    bucket = bucket_of("shelf/r/00000")
    await panel.parts.migration.begin_rehearsal(BY_ANN, [bucket])
    await eventually(lambda: panel.parts.mover.settled, 20.0)
    writes = dict(panel.system.traffic.writes)
    lend = shelf_pb2.LendOrder(path="shelf/r/00000", reader="ann", token=str(uuid4())).SerializeToString()
    await panel.system.client.multi_callable("/toy.Shelf/Lend")(lend, timeout=5)
    assert panel.system.traffic.writes[Store.A] == writes.get(Store.A, 0) + 1


@pytest.mark.parametrize(
    ("phase", "why"), [(Phase.OFF, "the phase is OFF"), (Phase.SHADOW, "SHADOW"), (Phase.CUTOVER, "CUTOVER")]
)
async def test_a_rehearsal_is_refused_where_one_store_does_everything(panel: Panel, phase: Phase, why: str) -> None:
    await go_to(panel, phase)
    with pytest.raises(IllegalMove, match=why):
        await panel.parts.maneuvers.rehearsals.start(BY_ANN, 4)
    assert await panel.store.progress(JOB) is None


@pytest.mark.parametrize("buckets", [0, -1, 65])
async def test_a_rehearsal_of_too_many_buckets_or_none_is_refused(panel: Panel, buckets: int) -> None:
    await go_to(panel, Phase.DUAL_READ)
    with pytest.raises(InvalidField, match="1 to 64"):
        await panel.parts.maneuvers.rehearsals.start(BY_ANN, buckets)


async def test_one_rehearsal_at_a_time(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_READ)
    await panel.parts.maneuvers.rehearsals.start(BY_ANN, 1)
    with pytest.raises(RehearsalUnderWay):
        await panel.parts.maneuvers.rehearsals.start(BY_ANN, 1)
    assert (await rehearsed(panel)).passed


async def test_a_rollback_ends_a_rehearsal_which_then_has_failed(panel: Panel) -> None:
    async with running_panel(mover=False) as still:
        await eventually(lambda: still.parts.observer.view(Store.B).reachable)
        while still.parts.cache.current.phase is not Phase.DUAL_WRITE:
            await step(still.parts.migration, BY_HAND)
        await still.parts.maneuvers.rehearsals.start(BY_ANN, 4)
        # Nobody moves them, so it waits.
        await eventually(lambda: still.parts.cache.current.rehearsal, 20.0)
        await still.parts.migration.rollback(BY_HAND, Phase.OFF)
        result = await rehearsed(still)
        assert (result.passed, "the setting was changed" in result.note) == (False, True)
        assert still.parts.cache.current.rehearsal == ()


async def test_buckets_of_a_rehearsal_whose_router_died_are_sent_home(panel: Panel) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_READ)
    buckets = (bucket_of("shelf/r/00000"), bucket_of("shelf/r/00001"))
    assert await panel.store.lease(LEASE, "router-0", 0.5)
    cursor = f'{{"id": "x", "by": "ann", "buckets": [{buckets[0]}, {buckets[1]}]}}'
    await panel.store.save(Progress(JOB, True, note="to the other store", cursor=cursor))
    await panel.parts.migration.begin_rehearsal(BY_ANN, buckets)
    result = await rehearsed(panel)
    assert (result.passed, result.buckets) == (False, buckets)
    assert "the router that watched it went away" in result.note
    assert panel.parts.cache.current.rehearsal == ()
    await eventually(lambda: panel.parts.mover.settled and panel.parts.mover.buckets_at_b == 1024, 20.0)


async def test_what_clients_see_at_another_router_is_told_to_the_jobs_of_this_one(panel: Panel) -> None:
    told = Answered(by_b=5, watch="x", calls=7, errors=2, handoffs=1)
    other = Measurement(panel.store, Meter(), "router-2", panel.parts.clock, Sources(answered=lambda: told))

    async def known() -> Answered | None:
        await other.exchange()
        return panel.parts.measurement.answered().get("router-2")

    assert await eventually(known, 10.0) == told
    assert panel.parts.measurement.answered()["router-1"] == panel.system.traffic.answered()

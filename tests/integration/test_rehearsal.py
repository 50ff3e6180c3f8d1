"""Walks of the canary, rehearsals and the rollback of one operation, over a running system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import grpc
import pytest

from libs.errors import InvalidField
from libs.eventlog.port import Event
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.store.port import Census
from services.router.control.memory import MemoryControlStore
from services.router.core.jobs import Job, JobState, JobUnderWay
from services.router.core.measure import Meter
from services.router.core.phase import IllegalMove, Phase
from services.router.flows.jobs import canary, rehearsal
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.kind import JobKind, Position, Step
from services.router.flows.jobs.orders import JobOrders, Order
from services.router.flows.jobs.rehearsal import Place, Rehearsal, Result
from services.router.flows.jobs.run import lease_of
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.migration import Decision
from services.router.flows.traffic import Answered
from tests.contracts.pb.toy import shelf_pb2
from tests.panel import QUICK, Panel, running_loops, running_panel
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
        await eventually(lambda: running.flows.observer.view(Store.B).reachable)
        yield running


async def go_to(panel: Panel, phase: Phase, permille: int = 0) -> None:
    while panel.flows.cache.current.phase is not phase:
        await step(panel.flows.migration, BY_HAND)
    if permille:
        await panel.flows.migration.set_canary(BY_HAND, permille)
    await eventually(lambda: panel.flows.mover.settled, 20.0)


async def status(panel: Panel) -> pb.GetStatusResponse:
    return await panel.control.GetStatus(pb.GetStatusRequest())


async def ask(panel: Panel, kind: str, arguments: Mapping[str, str]) -> Job:
    return await JobOrders(panel.flows.jobs, panel.flows.migration).start(BY_ANN, kind, arguments, 0.0)


async def walk(panel: Panel, plan: str) -> Job:
    return await ask(panel, canary.NAME, {canary.PLAN: plan})


async def rehearse(panel: Panel, buckets: int) -> Job:
    return await ask(panel, rehearsal.NAME, {rehearsal.BUCKETS_WANTED: str(buckets)})


async def ended(panel: Panel, kind: str = canary.NAME) -> Job:
    """The latest job of the kind, when it has ended."""

    def job() -> Job | None:
        latest = panel.flows.jobs.latest(kind)
        return latest if latest is not None and latest.ended_seconds else None

    found = await eventually(job, 20.0)
    assert found is not None
    return found


async def rehearsed(panel: Panel) -> Result:
    """The result of the rehearsal that is under way."""
    job = await ended(panel, rehearsal.NAME)
    assert job.state is JobState.FINISHED, job.note
    return Result.from_json((await panel.store.job(job.id)).report)


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
    await walk(panel, TWO_STEPS)
    job = await ended(panel)
    assert (job.state, job.done, job.note.partition(":")[0]) == (JobState.FINISHED, 2, "done")
    assert panel.flows.cache.current.canary_permille == 1000
    newest, before = [entry for entry in await panel.flows.migration.journal(10) if entry.action == "canary"]
    assert (newest.after.canary_permille, before.after.canary_permille) == (1000, 100)
    assert (newest.actor, newest.reason) == ("ann", "canary auto, step 2 of 2; a try")
    answer = await status(panel)
    assert (answer.canary_auto.running, answer.canary_auto.done, answer.canary_auto.total) == (False, 2, 2)


async def test_who_asked_for_a_walk_with_which_plan_and_why_is_in_the_journal_and_the_job(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    job = await walk(panel, NEVER_ENDS)
    assert (job.actor, job.reason) == ("ann", "a try")
    asked = next(entry for entry in await panel.flows.migration.journal(10) if entry.action == "job asked for")
    assert asked.reason.startswith("a try (canary-auto: plan [[step]] percent = 10 minimum_samples")


async def test_only_calls_that_b_answers_at_a_step_count_for_it(panel: Panel) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_WRITE, 500)
    await walk(panel, "[[step]]\npercent = 50\nminimum_samples = 20")
    await eventually(lambda: "B has answered 0 of 20 calls" in panel.flows.jobs.view[0].waits, 20.0)
    async with traffic(panel) as failures:
        assert (await ended(panel)).note.startswith("done")
    assert not failures


async def test_a_gate_that_fails_takes_the_canary_back_and_says_why(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await walk(panel, '[[step]]\npercent = 10\nminimum_samples = 1000000\ngates = ["parked"]')
    await eventually(lambda: panel.flows.cache.current.canary_permille == 100, 20.0)
    await panel.system.log.append([Event("nonsense", b"?")])
    job = await ended(panel)
    assert job.note.startswith("went back to 0 %: at 10 % parked FAIL: the number of parked events is ")
    assert panel.flows.cache.current.canary_permille == 0
    newest = (await panel.flows.migration.journal(1))[0]
    assert (newest.action, newest.actor) == ("canary", "ann")
    assert "parked FAIL" in newest.reason


async def test_one_walk_at_a_time_and_a_person_ends_it(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    job = await walk(panel, NEVER_ENDS)
    assert (await walk(panel, NEVER_ENDS)).id == job.id, "a repeated order finds its walk"
    with pytest.raises(JobUnderWay, match=f"baton jobs cancel {job.id}"):
        await walk(panel, TWO_STEPS)
    await eventually(lambda: panel.flows.cache.current.canary_permille == 100, 20.0)
    await panel.control.StopCanaryAuto(pb.StopCanaryAutoRequest(actor="bob", reason="enough"))
    stopped = await ended(panel)
    assert (stopped.state, stopped.note) == (JobState.CANCELLED, "cancelled by bob")
    newest = (await panel.flows.migration.journal(1))[0]
    assert (newest.actor, newest.action, newest.reason) == ("bob", "job cancelled", f"enough ({job.id})")
    assert panel.flows.cache.current.canary_permille == 100
    await walk(panel, TWO_STEPS)
    assert (await ended(panel)).note.startswith("done")


async def test_a_walk_that_is_paused_stands_still_and_goes_on(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    job = await walk(panel, "[[step]]\npercent = 10\nminimum_seconds = 1\n[[step]]\npercent = 20")
    await eventually(lambda: panel.flows.cache.current.canary_permille == 100, 20.0)
    await panel.flows.jobs.pause(job.id, "bob")
    await asyncio.sleep(1.2)
    assert panel.flows.cache.current.canary_permille == 100
    await panel.flows.jobs.resume(job.id, "bob")
    assert (await ended(panel)).note.startswith("done")


async def test_what_a_person_sets_ends_the_walk(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await walk(panel, NEVER_ENDS)
    await eventually(lambda: panel.flows.cache.current.canary_permille == 100, 20.0)
    await panel.flows.migration.rollback(BY_HAND, Phase.OFF)
    assert "stopped: the phase was changed to OFF" in (await ended(panel)).note
    assert panel.flows.cache.current.hold


async def test_a_wrong_plan_or_phase_is_refused_and_nothing_changes(panel: Panel) -> None:
    with pytest.raises(IllegalMove, match="steers only in DUAL_WRITE"):
        await walk(panel, TWO_STEPS)
    await go_to(panel, Phase.DUAL_WRITE)
    with pytest.raises(InvalidField, match="step 1: procent"):
        await walk(panel, "[[step]]\nprocent = 5")
    assert await panel.store.jobs() == []
    assert panel.flows.cache.current.canary_permille == 0


@asynccontextmanager
async def other_router(panel: Panel, kind: JobKind) -> AsyncIterator[Jobs]:
    """A router that gets the panel's first job of this kind. At the end it is killed: it writes nothing more."""
    store = MemoryControlStore(panel.store._shared)
    jobs = Jobs(store, [kind], "router-0", panel.flows.clock)
    lease = lease_of(f"{kind.name}-1")
    assert await store.lease(lease, "router-0", 10.0)
    async with running_loops(jobs.loop):
        yield jobs
        # It never gives its lease up: the other one waits until that has stood still for its time.
        await store.lease(lease, "router-0", 0.3)
        store.reachable = False


async def test_another_router_goes_on_with_a_walk_whose_router_died(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    parts = panel.flows
    kind = CanaryAuto(parts.migration, parts.cache, dict, lambda: parts.mover.settled, parts.clock)
    async with other_router(panel, kind):
        await walk(panel, TWO_STEPS.replace("gates", "minimum_seconds = 1\ngates"))
        await eventually(lambda: parts.cache.current.canary_permille == 100, 20.0)
    job = await ended(panel)
    assert (job.note.partition(":")[0], job.runner) == ("done", "router-1")
    assert parts.cache.current.canary_permille == 1000
    set_to = [entry.after.canary_permille for entry in await parts.migration.journal(20) if entry.action == "canary"]
    assert set_to == [1000, 100]


@pytest.mark.parametrize(("phase", "permille"), [(Phase.DUAL_WRITE, 500), (Phase.DUAL_READ, 0)])
async def test_a_rehearsal_moves_live_buckets_there_and_back(panel: Panel, phase: Phase, permille: int) -> None:
    await panel.put(RECORDS)
    await go_to(panel, phase, permille)
    before = {store: await panel.system.ports(store).inspection.census() for store in Store}
    async with traffic(panel) as failures:
        await rehearse(panel, 4)
        result = await rehearsed(panel)
    assert (result.passed, len(result.buckets)) == (True, 4)
    assert result.records >= 4, "buckets with records are rehearsed before empty ones"
    assert result.calls > 0, "no call was seen: the rehearsal shows nothing"
    assert min(result.there_seconds, result.back_seconds) > 0
    assert not failures
    await eventually(lambda: panel.flows.mover.settled, 20.0)
    assert {store: await panel.system.ports(store).inspection.census() for store in Store} == before
    actions = [entry.action for entry in await panel.flows.migration.journal(2)]
    assert actions == ["rehearsal ended", "rehearsal begun"]
    await eventually(lambda: panel.flows.evidence(panel.flows.cache.current).rehearsal_seconds_ago is not None)
    last = (await status(panel)).last_rehearsal
    assert (last.id, last.actor, last.passed, last.records) == ("rehearsal-1", "ann", True, result.records)


async def test_during_a_rehearsal_calls_go_where_their_bucket_is(panel: Panel) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_READ)
    bucket = bucket_of("shelf/r/00000")
    # Another router has the job, so none sends the bucket home.
    assert await panel.store.lease(lease_of("rehearsal-1"), "router-0", 60.0)
    await rehearse(panel, 1)
    await panel.flows.migration.begin_rehearsal(BY_ANN, [bucket])
    await eventually(lambda: panel.flows.mover.settled, 20.0)
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
        await rehearse(panel, 4)
    assert await panel.store.jobs() == []


@pytest.mark.parametrize("buckets", [0, -1, 65])
async def test_a_rehearsal_of_too_many_buckets_or_none_is_refused(panel: Panel, buckets: int) -> None:
    await go_to(panel, Phase.DUAL_READ)
    with pytest.raises(InvalidField, match="1 to 64"):
        await rehearse(panel, buckets)


async def test_one_rehearsal_at_a_time(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_READ)
    job = await rehearse(panel, 1)
    with pytest.raises(JobUnderWay, match=f"baton jobs cancel {job.id}"):
        await rehearse(panel, 2)
    assert (await rehearsed(panel)).passed


async def test_a_rollback_ends_a_rehearsal_which_then_has_failed(panel: Panel) -> None:
    async with running_panel(mover=False) as still:
        await eventually(lambda: still.flows.observer.view(Store.B).reachable)
        while still.flows.cache.current.phase is not Phase.DUAL_WRITE:
            await step(still.flows.migration, BY_HAND)
        await rehearse(still, 4)
        # Nobody moves them, so it waits.
        await eventually(lambda: still.flows.cache.current.rehearsal, 20.0)
        await still.flows.migration.rollback(BY_HAND, Phase.OFF)
        result = await rehearsed(still)
        assert (result.passed, "the setting was changed" in result.note) == (False, True)
        assert still.flows.cache.current.rehearsal == ()


class Halting:
    """A rehearsal that stands still at one stage, before or after the work of that stage's last step."""

    name, unit = rehearsal.NAME, "records"

    def __init__(self, panel: Panel, stage: str, when: str) -> None:
        parts = panel.flows
        answered = parts.measurement.answered
        self._kind = Rehearsal(panel.system.stores, parts.migration, parts.cache, answered, parts.clock, QUICK)
        self._stage = stage
        self._when = when
        self.halted = asyncio.Event()

    def lane(self, arguments: Mapping[str, str]) -> str:
        return self._kind.lane(arguments)

    async def step(self, at: Position) -> Step:
        if self._when == "before" and stage_of(at.checkpoint) == self._stage:
            await self._halt()
        done = await self._kind.step(at)
        if stage_of(at.checkpoint) == self._stage and (done.finished or stage_of(done.checkpoint) != self._stage):
            await self._halt()
        return done

    async def _halt(self) -> None:
        self.halted.set()
        await asyncio.Event().wait()


def stage_of(checkpoint: bytes) -> str:
    return Place.decode(checkpoint).stage if checkpoint else "choose"


async def everything_is_home(panel: Panel, before: Mapping[Store, Census]) -> None:
    await eventually(lambda: panel.flows.cache.current.rehearsal == () and panel.flows.mover.settled, 20.0)
    assert {store: await panel.system.ports(store).inspection.census() for store in Store} == before
    await eventually(lambda: panel.system.traffic.watch is None)


HALTS = [
    (stage, when) for stage in ("choose", "begin", "there", "turn", "back", "count") for when in ("before", "after")
]


@pytest.mark.parametrize(("stage", "when"), HALTS)
async def test_buckets_of_a_rehearsal_whose_router_died_are_sent_home(panel: Panel, stage: str, when: str) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_READ)
    before = {store: await panel.system.ports(store).inspection.census() for store in Store}
    halting = Halting(panel, stage, when)
    async with other_router(panel, halting):
        await rehearse(panel, 2)
        await halting.halted.wait()
    result = await rehearsed(panel)
    # Of a choice that was not stored nothing is known: the next router begins anew.
    assert result.passed == (stage == "choose"), result.note
    assert result.passed or result.note == "the run that measured it has ended; the buckets were sent home"
    await everything_is_home(panel, before)


@pytest.mark.parametrize(
    ("order", "stage", "when"),
    [
        *((Order.CANCEL, *halt) for halt in HALTS),
        *((Order.PAUSE, stage, "after") for stage in ("choose", "begin", "turn")),
    ],
)
async def test_buckets_of_a_rehearsal_that_a_person_stops_are_sent_home(
    panel: Panel, order: Order, stage: str, when: str
) -> None:
    await panel.put(RECORDS)
    await go_to(panel, Phase.DUAL_READ)
    before = {store: await panel.system.ports(store).inspection.census() for store in Store}
    halting = Halting(panel, stage, when)
    orders = JobOrders(panel.flows.jobs, panel.flows.migration)
    async with other_router(panel, halting):
        job = await rehearse(panel, 2)
        await halting.halted.wait()
        await orders.change(BY_ANN, order, job.id, 0.0)
        await everything_is_home(panel, before)
    assert panel.flows.evidence(panel.flows.cache.current).rehearsal_seconds_ago is None
    if order is Order.PAUSE:
        await orders.change(BY_ANN, Order.RESUME, job.id, 0.0)
        assert (await rehearsed(panel)).passed == (stage == "choose")
        await everything_is_home(panel, before)


async def test_buckets_that_are_away_without_a_job_are_sent_home(panel: Panel) -> None:
    """A router of the release before began a rehearsal, and was replaced."""
    await go_to(panel, Phase.DUAL_READ)
    await panel.flows.migration.begin_rehearsal(BY_ANN, [3, 4])
    await eventually(lambda: panel.flows.cache.current.rehearsal == (), 10.0)
    newest = (await panel.flows.migration.journal(1))[0]
    assert (newest.actor, newest.reason) == ("baton", "no rehearsal is under way")


async def test_what_clients_see_at_another_router_is_told_to_the_jobs_of_this_one(panel: Panel) -> None:
    told = Answered(by_b=5, watch="x", calls=7, errors=2, handoffs=1)
    other = Measurement(panel.store, Meter(), "router-2", panel.flows.clock, Sources(answered=lambda: told))

    async def known() -> Answered | None:
        await other.exchange()
        return panel.flows.measurement.answered().get("router-2")

    assert await eventually(known, 10.0) == told
    assert panel.flows.measurement.answered()["router-1"] == panel.system.traffic.answered()

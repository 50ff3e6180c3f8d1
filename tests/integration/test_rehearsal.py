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
from libs.store.inspection import Census
from services.router.control.memory import MemoryControlStore
from services.router.core.jobs import Job, JobState, JobUnderWay
from services.router.core.measure import Meter
from services.router.core.phase import IllegalMove, Phase
from services.router.flows.jobs import canary, rehearsal
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.job_orders import JobAction, JobOrders
from services.router.flows.jobs.kind import JobKind, Position, Step
from services.router.flows.jobs.rehearsal import Rehearsal, Result, State
from services.router.flows.jobs.run import lease_of
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.migration import Decision
from services.router.flows.traffic import Answered
from tests.contracts.pb.toy import shelf_pb2
from tests.system.control import QUICK, ControlledSystem, running_controlled_system, running_loops
from tests.system.whole import step
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
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system() as running:
        await eventually(lambda: running.flows.observer.view(Store.B).reachable)
        yield running


async def go_to(controlled: ControlledSystem, phase: Phase, permille: int = 0) -> None:
    while controlled.flows.cache.current.phase is not phase:
        await step(controlled.flows.migration, BY_HAND)
    if permille:
        await controlled.flows.migration.set_canary(BY_HAND, permille)
    await eventually(lambda: controlled.flows.mover.settled, 20.0)


async def status(controlled: ControlledSystem) -> pb.GetStatusResponse:
    return await controlled.control.GetStatus(pb.GetStatusRequest())


async def ask(controlled: ControlledSystem, kind: str, arguments: Mapping[str, str]) -> Job:
    return await JobOrders(controlled.flows.jobs, controlled.flows.migration).start(BY_ANN, kind, arguments, 0.0)


async def walk(controlled: ControlledSystem, plan: str) -> Job:
    return await ask(controlled, canary.NAME, {canary.PLAN: plan})


async def rehearse(controlled: ControlledSystem, buckets: int) -> Job:
    return await ask(controlled, rehearsal.NAME, {rehearsal.BUCKETS_WANTED: str(buckets)})


async def ended(controlled: ControlledSystem, kind: str = canary.NAME) -> Job:
    """The latest job of the kind, when it has ended."""

    def job() -> Job | None:
        latest = controlled.flows.jobs.latest(kind)
        return latest if latest is not None and latest.ended_seconds else None

    found = await eventually(job, 20.0)
    assert found is not None
    return found


async def rehearsed(controlled: ControlledSystem) -> Result:
    """The result of the rehearsal that is under way."""
    job = await ended(controlled, rehearsal.NAME)
    assert job.state is JobState.FINISHED, job.note
    return Result.from_json((await controlled.store.job(job.id)).report)


@asynccontextmanager
async def traffic(controlled: ControlledSystem) -> AsyncIterator[list[grpc.aio.AioRpcError]]:
    """Reads and writes of the first records, all the time; the failures."""
    failures: list[grpc.aio.AioRpcError] = []

    async def call() -> None:
        while True:
            for number in range(RECORDS):
                path = f"shelf/r/{number:05}"
                look = shelf_pb2.LookOrder(path=path).SerializeToString()
                lend = shelf_pb2.LendOrder(path=path, reader="ann", token=str(uuid4())).SerializeToString()
                try:
                    await controlled.system.client.multi_callable("/toy.Shelf/Look")(look, timeout=5)
                    await controlled.system.client.multi_callable("/toy.Shelf/Lend")(lend, timeout=5)
                except grpc.aio.AioRpcError as error:
                    failures.append(error)

    task = asyncio.create_task(call())
    try:
        yield failures
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_walk_goes_step_by_step_to_its_end_and_journals_each(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await walk(controlled, TWO_STEPS)
    job = await ended(controlled)
    assert (job.state, job.done, job.note.partition(":")[0]) == (JobState.FINISHED, 2, "done")
    assert controlled.flows.cache.current.canary_permille == 1000
    newest, before = [entry for entry in await controlled.flows.migration.journal(10) if entry.action == "canary"]
    assert (newest.after.canary_permille, before.after.canary_permille) == (1000, 100)
    assert (newest.actor, newest.reason) == ("ann", "canary auto, step 2 of 2; a try")
    answer = await status(controlled)
    assert (answer.canary_auto.running, answer.canary_auto.done, answer.canary_auto.total) == (False, 2, 2)


async def test_who_asked_for_a_walk_with_which_plan_and_why_is_in_the_journal_and_the_job(
    controlled: ControlledSystem,
) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    job = await walk(controlled, NEVER_ENDS)
    assert (job.actor, job.reason) == ("ann", "a try")
    asked = next(entry for entry in await controlled.flows.migration.journal(10) if entry.action == "job requested")
    assert asked.reason.startswith("a try (canary-auto: plan [[step]] percent = 10 minimum_samples")


async def test_only_calls_that_b_answers_at_a_step_count_for_it(controlled: ControlledSystem) -> None:
    await controlled.put(RECORDS)
    await go_to(controlled, Phase.DUAL_WRITE, 500)
    await walk(controlled, "[[step]]\npercent = 50\nminimum_samples = 20")
    await eventually(lambda: "B has answered 0 of 20 calls" in controlled.flows.jobs.view[0].waits, 20.0)
    async with traffic(controlled) as failures:
        assert (await ended(controlled)).note.startswith("done")
    assert not failures


async def test_a_gate_that_fails_takes_the_canary_back_and_says_why(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await walk(controlled, '[[step]]\npercent = 10\nminimum_samples = 1000000\ngates = ["parked"]')
    await eventually(lambda: controlled.flows.cache.current.canary_permille == 100, 20.0)
    await controlled.system.log.append([Event("nonsense", b"?")])
    job = await ended(controlled)
    assert job.note.startswith("went back to 0 %: at 10 % parked FAIL: the number of parked events is ")
    assert controlled.flows.cache.current.canary_permille == 0
    newest = (await controlled.flows.migration.journal(1))[0]
    assert (newest.action, newest.actor) == ("canary", "ann")
    assert "parked FAIL" in newest.reason


async def test_one_walk_at_a_time_and_a_person_ends_it(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    job = await walk(controlled, NEVER_ENDS)
    assert (await walk(controlled, NEVER_ENDS)).id == job.id, "a repeated order finds its walk"
    with pytest.raises(JobUnderWay, match=f"baton jobs cancel {job.id}"):
        await walk(controlled, TWO_STEPS)
    await eventually(lambda: controlled.flows.cache.current.canary_permille == 100, 20.0)
    await controlled.control.StopCanaryAuto(pb.StopCanaryAutoRequest(actor="bob", reason="enough"))
    stopped = await ended(controlled)
    assert (stopped.state, stopped.note) == (JobState.CANCELLED, "cancelled by bob")
    newest = (await controlled.flows.migration.journal(1))[0]
    assert (newest.actor, newest.action, newest.reason) == ("bob", "job cancelled", f"enough ({job.id})")
    assert controlled.flows.cache.current.canary_permille == 100
    await walk(controlled, TWO_STEPS)
    assert (await ended(controlled)).note.startswith("done")


async def test_a_walk_that_is_paused_stands_still_and_goes_on(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    job = await walk(controlled, "[[step]]\npercent = 10\nminimum_seconds = 1\n[[step]]\npercent = 20")
    await eventually(lambda: controlled.flows.cache.current.canary_permille == 100, 20.0)
    await controlled.flows.jobs.pause(job.id, "bob")
    await asyncio.sleep(1.2)
    assert controlled.flows.cache.current.canary_permille == 100
    await controlled.flows.jobs.resume(job.id, "bob")
    assert (await ended(controlled)).note.startswith("done")


async def test_what_a_person_sets_ends_the_walk(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await walk(controlled, NEVER_ENDS)
    await eventually(lambda: controlled.flows.cache.current.canary_permille == 100, 20.0)
    await controlled.flows.migration.rollback(BY_HAND, Phase.OFF)
    assert "stopped: the phase was changed to OFF" in (await ended(controlled)).note
    assert controlled.flows.cache.current.hold


async def test_a_wrong_plan_or_phase_is_refused_and_nothing_changes(controlled: ControlledSystem) -> None:
    with pytest.raises(IllegalMove, match="steers only in DUAL_WRITE"):
        await walk(controlled, TWO_STEPS)
    await go_to(controlled, Phase.DUAL_WRITE)
    with pytest.raises(InvalidField, match="step 1: procent"):
        await walk(controlled, "[[step]]\nprocent = 5")
    assert await controlled.store.jobs() == []
    assert controlled.flows.cache.current.canary_permille == 0


@asynccontextmanager
async def other_router(controlled: ControlledSystem, kind: JobKind) -> AsyncIterator[Jobs]:
    """A router that gets the system's first job of this kind. At the end it is killed: it writes nothing more."""
    store = MemoryControlStore(controlled.store._shared)
    jobs = Jobs(store, [kind], "router-0", controlled.flows.clock)
    lease = lease_of(f"{kind.name}-1")
    assert await store.lease(lease, "router-0", 10.0)
    async with running_loops(jobs.loop):
        yield jobs
        # It never gives its lease up: the other one waits until that has stood still for its time.
        await store.lease(lease, "router-0", 0.3)
        store.reachable = False


async def test_another_router_goes_on_with_a_walk_whose_router_died(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    parts = controlled.flows
    kind = CanaryAuto(parts.migration, parts.cache, dict, lambda: parts.mover.settled, parts.clock)
    async with other_router(controlled, kind):
        await walk(controlled, TWO_STEPS.replace("gates", "minimum_seconds = 1\ngates"))
        await eventually(lambda: parts.cache.current.canary_permille == 100, 20.0)
    job = await ended(controlled)
    assert (job.note.partition(":")[0], job.runner) == ("done", "router-1")
    assert parts.cache.current.canary_permille == 1000
    set_to = [entry.after.canary_permille for entry in await parts.migration.journal(20) if entry.action == "canary"]
    assert set_to == [1000, 100]


@pytest.mark.parametrize(("phase", "permille"), [(Phase.DUAL_WRITE, 500), (Phase.DUAL_READ, 0)])
async def test_a_rehearsal_moves_live_buckets_there_and_back(
    controlled: ControlledSystem, phase: Phase, permille: int
) -> None:
    await controlled.put(RECORDS)
    await go_to(controlled, phase, permille)
    before = {store: await controlled.system.ports(store).inspection.census() for store in Store}
    async with traffic(controlled) as failures:
        await rehearse(controlled, 4)
        result = await rehearsed(controlled)
    assert (result.passed, len(result.buckets)) == (True, 4)
    assert result.records >= 4, "buckets with records are rehearsed before empty ones"
    assert result.calls > 0, "no call was seen: the rehearsal shows nothing"
    assert min(result.there_seconds, result.back_seconds) > 0
    assert not failures
    await eventually(lambda: controlled.flows.mover.settled, 20.0)
    assert {store: await controlled.system.ports(store).inspection.census() for store in Store} == before
    actions = [entry.action for entry in await controlled.flows.migration.journal(2)]
    assert actions == ["rehearsal ended", "rehearsal begun"]
    await eventually(
        lambda: controlled.flows.evidence(controlled.flows.cache.current).rehearsal_seconds_ago is not None
    )
    last = (await status(controlled)).last_rehearsal
    assert (last.id, last.actor, last.passed, last.records) == ("rehearsal-1", "ann", True, result.records)


async def test_during_a_rehearsal_calls_go_where_their_bucket_is(controlled: ControlledSystem) -> None:
    await controlled.put(RECORDS)
    await go_to(controlled, Phase.DUAL_READ)
    bucket = bucket_of("shelf/r/00000")
    # Another router has the job, so none sends the bucket home.
    assert await controlled.store.lease(lease_of("rehearsal-1"), "router-0", 60.0)
    await rehearse(controlled, 1)
    await controlled.flows.migration.begin_rehearsal(BY_ANN, [bucket])
    await eventually(lambda: controlled.flows.mover.settled, 20.0)
    await asyncio.sleep(2 * rehearsal.LOOK_SECONDS)
    writes = dict(controlled.system.traffic.writes)
    lend = shelf_pb2.LendOrder(path="shelf/r/00000", reader="ann", token=str(uuid4())).SerializeToString()
    await controlled.system.client.multi_callable("/toy.Shelf/Lend")(lend, timeout=5)
    assert controlled.system.traffic.writes[Store.A] == writes.get(Store.A, 0) + 1


@pytest.mark.parametrize(
    ("phase", "why"), [(Phase.OFF, "the phase is OFF"), (Phase.SHADOW, "SHADOW"), (Phase.CUTOVER, "CUTOVER")]
)
async def test_a_rehearsal_is_refused_where_one_store_does_everything(
    controlled: ControlledSystem, phase: Phase, why: str
) -> None:
    await go_to(controlled, phase)
    with pytest.raises(IllegalMove, match=why):
        await rehearse(controlled, 4)
    assert await controlled.store.jobs() == []


@pytest.mark.parametrize("buckets", [0, -1, 65])
async def test_a_rehearsal_of_too_many_buckets_or_none_is_refused(controlled: ControlledSystem, buckets: int) -> None:
    await go_to(controlled, Phase.DUAL_READ)
    with pytest.raises(InvalidField, match="1 to 64"):
        await rehearse(controlled, buckets)


async def test_one_rehearsal_at_a_time(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_READ)
    job = await rehearse(controlled, 1)
    with pytest.raises(JobUnderWay, match=f"baton jobs cancel {job.id}"):
        await rehearse(controlled, 2)
    assert (await rehearsed(controlled)).passed


async def test_a_rollback_ends_a_rehearsal_which_then_has_failed(controlled: ControlledSystem) -> None:
    async with running_controlled_system(mover=False) as still:
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

    def __init__(self, controlled: ControlledSystem, stage: str, when: str) -> None:
        parts = controlled.flows
        answered = parts.measurement.answered
        self._kind = Rehearsal(controlled.system.stores, parts.migration, parts.cache, answered, parts.clock, QUICK)
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
    return State.decode(checkpoint).stage if checkpoint else "choose"


async def everything_is_home(controlled: ControlledSystem, before: Mapping[Store, Census]) -> None:
    await eventually(lambda: controlled.flows.cache.current.rehearsal == () and controlled.flows.mover.settled, 20.0)
    assert {store: await controlled.system.ports(store).inspection.census() for store in Store} == before
    await eventually(lambda: controlled.system.traffic.watch is None)


HALTS = [
    (stage, when) for stage in ("choose", "begin", "there", "turn", "back", "count") for when in ("before", "after")
]


@pytest.mark.parametrize(("stage", "when"), HALTS)
async def test_buckets_of_a_rehearsal_whose_router_died_are_sent_home(
    controlled: ControlledSystem, stage: str, when: str
) -> None:
    await controlled.put(RECORDS)
    await go_to(controlled, Phase.DUAL_READ)
    before = {store: await controlled.system.ports(store).inspection.census() for store in Store}
    halting = Halting(controlled, stage, when)
    async with other_router(controlled, halting):
        await rehearse(controlled, 2)
        await halting.halted.wait()
    result = await rehearsed(controlled)
    # Of a choice that was not stored nothing is known: the next router begins anew.
    assert result.passed == (stage == "choose"), result.note
    assert result.passed or result.note == "the run that measured it has ended; the buckets return"
    await everything_is_home(controlled, before)


@pytest.mark.parametrize(
    ("order", "stage", "when"),
    [
        *((JobAction.CANCEL, *halt) for halt in HALTS),
        *((JobAction.PAUSE, stage, "after") for stage in ("choose", "begin", "turn")),
    ],
)
async def test_buckets_of_a_rehearsal_that_a_person_stops_are_sent_home(
    controlled: ControlledSystem, order: JobAction, stage: str, when: str
) -> None:
    await controlled.put(RECORDS)
    await go_to(controlled, Phase.DUAL_READ)
    before = {store: await controlled.system.ports(store).inspection.census() for store in Store}
    halting = Halting(controlled, stage, when)
    orders = JobOrders(controlled.flows.jobs, controlled.flows.migration)
    async with other_router(controlled, halting):
        job = await rehearse(controlled, 2)
        await halting.halted.wait()
        await orders.change(BY_ANN, order, job.id, 0.0)
        await everything_is_home(controlled, before)
    assert controlled.flows.evidence(controlled.flows.cache.current).rehearsal_seconds_ago is None
    if order is JobAction.PAUSE:
        await orders.change(BY_ANN, JobAction.RESUME, job.id, 0.0)
        assert (await rehearsed(controlled)).passed == (stage == "choose")
        await everything_is_home(controlled, before)


async def test_buckets_that_are_away_without_a_job_are_sent_home(controlled: ControlledSystem) -> None:
    """A router of the release before began a rehearsal, and was replaced."""
    await go_to(controlled, Phase.DUAL_READ)
    await controlled.flows.migration.begin_rehearsal(BY_ANN, [3, 4])
    await eventually(lambda: controlled.flows.cache.current.rehearsal == (), 10.0)
    newest = (await controlled.flows.migration.journal(1))[0]
    assert (newest.actor, newest.reason) == ("baton", "no rehearsal is under way")


async def test_what_clients_see_at_another_router_is_told_to_the_jobs_of_this_one(controlled: ControlledSystem) -> None:
    told = Answered(by_b=5, watch="x", calls=7, errors=2, handoffs=1)
    other = Measurement(controlled.store, Meter(), "router-2", controlled.flows.clock, Sources(answered=lambda: told))

    async def known() -> Answered | None:
        await other.exchange()
        return controlled.flows.measurement.answered().get("router-2")

    assert await eventually(known, 10.0) == told
    assert controlled.flows.measurement.answered()["router-1"] == controlled.system.traffic.answered()

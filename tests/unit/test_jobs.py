"""Jobs: allowed transitions, and the choice of the router that runs them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from libs.clock import SystemClock
from libs.errors import InvalidField, StoreNotReady
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.core import jobs as rules
from services.router.core.jobs import Job, JobRefused, JobState
from services.router.core.throttle import Load
from services.router.flows.jobs.kind import JobFailed, Position, Step
from services.router.flows.jobs.run import lease_of
from services.router.flows.jobs.runner import Jobs
from tests.system.control import running_loops
from tests.waiting import eventually

JOB = Job("count", "count", "ann", id="count-1", version=1, claim="run", done=3, checkpoint=b"3")

ACTIONS: Mapping[str, Callable[[Job], Job]] = {
    "claim": lambda job: rules.claim(job, "new", "router-1"),
    "pause": lambda job: rules.pause(job, "ben"),
    "resume": lambda job: rules.resume(job, "ben"),
    "cancel": lambda job: rules.cancel(job, "ben", 9.0),
    "tune": lambda job: rules.tune(job, 5.0),
    "finish": lambda job: rules.finish(job, "done", 9.0),
    "fail": lambda job: rules.fail(job, "broken", 9.0),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", JobState)
def test_an_action_is_allowed_where_the_table_says_so_and_keeps_the_checkpoint(action: str, state: JobState) -> None:
    job = replace(JOB, state=state)
    if state in rules.FROM[action]:
        changed = ACTIONS[action](job)
        assert (changed.checkpoint, changed.done, changed.version) == (b"3", 3, 1)
        return
    with pytest.raises(JobRefused, match=f"count-1 is {state.value}, but {action} needs a job that is"):
        ACTIONS[action](job)


ENDED = {"waits": "", "claim": "", "per_second": 0.0, "ended_seconds": 9.0}
STILL = {"waits": "", "per_second": 0.0}

CHANGES: Mapping[str, Mapping[str, object]] = {
    "claim": {**STILL, "state": JobState.RUNNING, "claim": "new", "runner": "router-1"},
    "pause": {**STILL, "state": JobState.PAUSED, "note": "paused by ben"},
    "resume": {"waits": "", "state": JobState.QUEUED, "note": "resumed by ben", "claim": "", "ended_seconds": 0.0},
    "cancel": {**ENDED, "state": JobState.CANCELLED, "note": "cancelled by ben"},
    "tune": {"rate": 5.0},
    "finish": {**ENDED, "state": JobState.FINISHED, "note": "done", "total": 3},
    "fail": {**ENDED, "state": JobState.FAILED, "note": "broken"},
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_changes_so_much_of_a_job_and_no_more(action: str) -> None:
    busy = replace(JOB, total=9, per_second=2.0, waits="for B", ended_seconds=5.0, runner="router-0", report="{}")
    for state in rules.FROM[action]:
        job = replace(busy, state=state)
        assert ACTIONS[action](job) == replace(job, **CHANGES[action])  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [-1.0, 0.5, 1_000_001.0, float("nan")])
def test_a_rate_that_no_job_can_keep_is_refused(rate: float) -> None:
    with pytest.raises(InvalidField, match="rate"):
        rules.tune(JOB, rate)


@pytest.mark.parametrize("actor", ["", " ", "a" * 129])
def test_an_order_names_its_actor(actor: str) -> None:
    rules.check_actor("a" * 128)
    for order in (rules.pause, rules.resume):
        with pytest.raises(InvalidField, match="actor"):
            order(JOB, actor)


@pytest.mark.parametrize("ended", [JobState.FINISHED, JobState.CANCELLED])
def test_nothing_follows_on_a_job_that_ended(ended: JobState) -> None:
    assert ended.ended
    assert not any(ended in states for states in rules.FROM.values())


def test_after_a_resume_the_former_run_has_no_claim_any_more() -> None:
    paused = rules.pause(replace(JOB, state=JobState.RUNNING), "ben")
    assert paused.claim == "run", "its last step is still written down"
    assert rules.resume(paused, "ben").claim == ""


def test_time_left_is_told_only_when_it_is_known() -> None:
    running = replace(JOB, state=JobState.RUNNING, total=13, per_second=2.0)
    assert running.eta_seconds == 5.0
    assert replace(running, per_second=0.0).eta_seconds < 0
    assert replace(running, total=0).eta_seconds < 0
    assert replace(running, total=2).eta_seconds < 0, "more is done than was known of"
    assert replace(running, state=JobState.FINISHED).eta_seconds == 0.0


@dataclass
class Count:
    """Counts to `to`; shows each number that it did, so that repeated ones are seen."""

    done: list[int] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: Exception | None = None
    at_most: int = 5
    cancelled: int = 0

    name = "count"
    unit = "numbers"

    def lane(self, arguments: Mapping[str, str]) -> str:
        if not arguments.get("to", "").isdigit():
            raise InvalidField("to", arguments.get("to", ""), "a number")
        return "count"

    async def step(self, at: Position) -> Step:
        start, end = int(at.checkpoint or b"0"), int(at.arguments["to"])
        stop = min(end, start + min(at.limit, self.at_most))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.trouble is not None:
            raise self.trouble
        self.done += range(start, stop)
        return Step(str(stop).encode(), stop - start, end, finished=stop == end, report=f'{{"last": {stop}}}')


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@asynccontextmanager
async def running_jobs(
    kind: Count, shared: MemoryControlState, holder: str = "router-1", load: Callable[[], Load] = Load
) -> AsyncIterator[Jobs]:
    jobs = Jobs(MemoryControlStore(shared), [kind], holder, SystemClock(), load)
    async with running_loops(jobs.loop):
        yield jobs


def state_of(jobs: Jobs, job_id: str = "count-1") -> JobState | None:
    return next((job.state for job in jobs.view if job.id == job_id), None)


async def finished(jobs: Jobs) -> Job:
    await eventually(lambda: state_of(jobs) is JobState.FINISHED)
    return await jobs.job("count-1")


async def test_a_job_goes_step_by_step_to_its_end() -> None:
    kind = Count(gate=open_gate())
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "13"}, "ann")
        job = await finished(jobs)
    assert kind.done == list(range(13))
    assert (job.done, job.total, job.note, job.report, job.waits) == (13, 13, "finished", '{"last": 13}', "")
    assert (job.runner, job.eta_seconds, job.ended_seconds > 0) == ("router-1", 0.0, True)


async def test_each_step_knows_its_job_by_name_and_number() -> None:
    seen: list[tuple[str, int]] = []

    class Known(Count):
        async def step(self, at: Position) -> Step:
            seen.append((at.job.partition(" ")[0], at.number))
            return await super().step(at)

    async with running_jobs(Known(gate=open_gate()), MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "1"}, "ann")
        await eventually(lambda: state_of(jobs, "count-1") is JobState.FINISHED)
        await jobs.start("count", {"to": "2"}, "ann")
        await eventually(lambda: state_of(jobs, "count-2") is JobState.FINISHED)
    assert seen == [("count-1", 1), ("count-2", 2)]


async def test_what_cannot_be_had_now_is_waited_for_and_said() -> None:
    kind = Count(gate=open_gate(), trouble=StoreNotReady("B is being repaired"))
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "3"}, "ann")
        await eventually(lambda: jobs.view[0].waits == "B is being repaired")
        assert state_of(jobs) is JobState.RUNNING
        kind.trouble = None
        assert (await finished(jobs)).waits == ""


@pytest.mark.parametrize(
    ("trouble", "note"),
    [
        (JobFailed("the log has dropped the beginning"), "the log has dropped the beginning"),
        (KeyError("x"), "a defect of the program: KeyError: 'x'"),
    ],
)
async def test_a_job_that_cannot_go_on_waits_for_a_person(trouble: Exception, note: str) -> None:
    kind = Count(gate=open_gate())
    async with running_jobs(kind, MemoryControlState()) as jobs:
        kind.trouble = trouble
        await jobs.start("count", {"to": "3"}, "ann")
        await eventually(lambda: state_of(jobs) is JobState.FAILED)
        assert jobs.view[0].note == note
        kind.trouble = None
        await jobs.resume("count-1", "ben")
        await finished(jobs)
    assert kind.done == [0, 1, 2]


async def test_a_step_under_way_is_still_written_down_when_its_job_is_paused() -> None:
    kind = Count()
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "20"}, "ann")
        await eventually(lambda: state_of(jobs) is JobState.RUNNING)
        assert (await jobs.pause("count-1", "ben")).state is JobState.PAUSED
        kind.gate.set()
        await eventually(lambda: jobs.view[0].done == 5)
        job = await jobs.job("count-1")
        assert (job.state, job.note, job.checkpoint) == (JobState.PAUSED, "paused by ben", b"5")
        assert job.per_second == 0.0, "it does not go on"
        await jobs.resume("count-1", "ben")
        assert (await finished(jobs)).done == 20
    assert kind.done == list(range(20)), "nothing was done twice, nothing left out"


async def test_a_step_under_way_is_ended_when_its_job_is_cancelled() -> None:
    kind = Count()
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "20"}, "ann")
        await eventually(lambda: state_of(jobs) is JobState.RUNNING)
        await jobs.cancel("count-1", "ben")
        await eventually(lambda: kind.cancelled == 1)
        assert (await jobs.job("count-1")).note == "cancelled by ben"
    assert kind.done == []


async def test_a_rate_is_kept_and_tuned_while_the_job_waits_for_its_turn() -> None:
    kind = Count(gate=open_gate())
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "500"}, "ann", rate=1.0)
        await eventually(lambda: jobs.view[0].done == 1)
        await jobs.tune("count-1", 0.0)
        assert (await finished(jobs)).rate == 0.0
    assert kind.done == list(range(500))


async def test_a_step_that_did_more_than_its_share_is_paid_for_unless_the_rate_is_lifted() -> None:
    class Eager(Count):
        async def step(self, at: Position) -> Step:
            return await super().step(replace(at, limit=100))

    kind = Eager(gate=open_gate(), at_most=100)
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "300"}, "ann", rate=1.0)
        await eventually(lambda: jobs.view[0].done == 100)
        await jobs.tune("count-1", 0.0)
        await finished(jobs)
    assert kind.done == list(range(300))


async def test_live_traffic_that_suffers_slows_a_job_down_and_the_job_says_so() -> None:
    kind = Count(gate=open_gate())
    load = Load(lag_seconds=99.0)
    async with running_jobs(kind, MemoryControlState(), load=lambda: load) as jobs:
        await jobs.start("count", {"to": "3000"}, "ann")
        await eventually(lambda: jobs.view[0].waits == "slowed down to 100/s: lag 99.0 s is above 10 s")
        assert state_of(jobs) is JobState.RUNNING
        load = Load(lag_seconds=0.0)
        await eventually(lambda: "faster again" in jobs.view[0].waits)


async def test_one_router_runs_a_job_and_the_next_one_goes_on_with_it() -> None:
    shared, kind = MemoryControlState(), Count()
    async with running_jobs(kind, shared) as one:
        await one.start("count", {"to": "8"}, "ann")
        await eventually(lambda: state_of(one) is JobState.RUNNING)
        other_kind = Count(gate=open_gate())
        async with running_jobs(other_kind, shared, "router-2") as other:
            await eventually(lambda: state_of(other) is JobState.RUNNING)
            claim = shared.durable[1].claim
            for _ in range(5):
                await other.look()
                await asyncio.sleep(0)
            assert shared.durable[1].claim == claim, "who does not hold the lease takes nothing over"
            kind.gate.set()
            assert (await finished(other)).runner == "router-1"
        assert other_kind.done == []
    assert await MemoryControlStore(shared).lease(lease_of("count-1"), "router-9", 60.0), "it is given up at the end"


class FirstReport(Count):
    """Only its first step reports."""

    async def step(self, at: Position) -> Step:
        step = await super().step(at)
        return replace(step, report=None) if at.checkpoint else step


async def test_a_step_without_a_report_keeps_the_one_before() -> None:
    async with running_jobs(FirstReport(gate=open_gate()), MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "10"}, "ann")
        await finished(jobs)
        assert (await jobs.job("count-1")).report == '{"last": 5}'


async def test_a_run_whose_lease_another_router_has_ends_before_that_one_has_claimed_the_job() -> None:
    shared, slow = MemoryControlState(), Count()
    async with running_jobs(slow, shared) as one:
        await one.start("count", {"to": "9"}, "ann")
        await eventually(lambda: state_of(one) is JobState.RUNNING)
        claim = shared.durable[1].claim
        shared.leases.pop(lease_of("count-1"))
        assert await MemoryControlStore(shared).lease(lease_of("count-1"), "router-2", 60.0)
        await eventually(lambda: slow.cancelled)
        assert shared.durable[1].claim == claim and slow.done == []


async def test_a_run_that_lost_its_job_writes_nothing_down() -> None:
    shared, slow, quick = MemoryControlState(), Count(), Count(gate=open_gate())
    store = MemoryControlStore(shared)
    async with running_jobs(slow, shared) as one:
        await one.start("count", {"to": "9"}, "ann")
        await eventually(lambda: state_of(one) is JobState.RUNNING)
        # As if this router had stood still for longer than its lease: another one has taken the job over.
        shared.leases.pop(lease_of("count-1"))
        async with running_jobs(quick, shared, "router-2") as other:
            assert (await finished(other)).runner == "router-2"
            before = await store.job("count-1")
            slow.gate.set()
            await eventually(lambda: slow.cancelled or slow.done)
        await eventually(lambda: lease_of("count-1") not in shared.leases)
    assert await store.job("count-1") == before


@dataclass
class DyingCount(Count):
    """Stands still in one of its steps, before or after it has done its work, until its router dies."""

    steps_left: int = 0
    after_its_work: bool = False
    dying: asyncio.Event = field(default_factory=asyncio.Event)

    async def step(self, at: Position) -> Step:
        self.steps_left -= 1
        if self.steps_left >= 0:
            return await super().step(at)
        if self.after_its_work:
            await super().step(at)
        self.dying.set()
        await asyncio.Event().wait()
        raise AssertionError("it is dead")


@pytest.mark.parametrize("seed", range(5))
async def test_a_job_whose_routers_die_at_random_ends_with_the_same_result(seed: int) -> None:
    shared, chance, kinds = MemoryControlState(), random.Random(seed), list[DyingCount]()
    asking = Jobs(MemoryControlStore(shared), [Count()], "router-0", SystemClock())
    await asking.start("count", {"to": "100"}, "ann")
    while shared.durable[1].state is not JobState.FINISHED:
        kind = DyingCount(gate=open_gate(), at_most=chance.randint(1, 9))
        kind.steps_left, kind.after_its_work = chance.randint(0, 6), chance.random() < 0.5
        kinds.append(kind)
        async with running_jobs(kind, shared) as jobs:
            await eventually(lambda: kind.dying.is_set() or state_of(jobs) is JobState.FINISHED)  # noqa: B023
    assert len(kinds) > 2
    assert (shared.durable[1].done, shared.durable[1].report) == (100, '{"last": 100}')
    assert sorted({number for kind in kinds for number in kind.done}) == list(range(100))


async def test_a_control_store_that_is_away_stops_no_job_for_good() -> None:
    shared, kind = MemoryControlState(), Count(gate=open_gate(), at_most=1)
    store = MemoryControlStore(shared)
    jobs = Jobs(store, [kind], "router-1", SystemClock())
    async with running_loops(jobs.loop):
        await jobs.start("count", {"to": "5000"}, "ann")
        await eventually(lambda: kind.done)
        store.reachable = False
        await eventually(lambda: jobs.trouble and "the control store is unavailable" in jobs.view[0].waits)
        store.reachable = True
        before = len(kind.done)
        await eventually(lambda: len(kind.done) > before + 10)
        assert jobs.trouble == ""

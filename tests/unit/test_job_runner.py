"""How a router chooses jobs to run, bounds their steps, and keeps its view of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from libs.clock import SystemClock
from libs.errors import StoreNotReady
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.core.jobs import MAX_CHECKPOINT_BYTES, MAX_REPORT_BYTES, Job, JobState
from services.router.flows.jobs import run as job_run
from services.router.flows.jobs import runner as job_runner
from services.router.flows.jobs.kind import JobFailed, Position, Step, checked
from services.router.flows.jobs.run import Run
from services.router.flows.jobs.runner import Jobs
from tests.unit.test_jobs import Count, finished, open_gate, running_jobs, state_of
from tests.waiting import eventually


async def test_a_router_runs_so_many_jobs_at_once_and_begins_the_next_when_one_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lanes(Count):
        def lane(self, arguments: Mapping[str, str]) -> str:
            return f"count to {arguments['to']}"

    monkeypatch.setattr(job_runner, "MAX_JOBS", 2)
    kind = Lanes()
    async with running_jobs(kind, MemoryControlState()) as jobs:
        for to in "345":
            await jobs.start("count", {"to": to}, "ann")
        await eventually(lambda: [state_of(jobs, f"count-{n}") for n in (1, 2)] == [JobState.RUNNING] * 2)
        await jobs.look()
        assert state_of(jobs, "count-3") is JobState.QUEUED, "the oldest ones come first"
        kind.gate.set()
        await eventually(lambda: state_of(jobs, "count-3") is JobState.FINISHED)


async def test_an_order_that_is_given_while_jobs_are_read_stays_in_the_view() -> None:
    class Slow(MemoryControlStore):
        reads, go_on = 0, open_gate()

        async def jobs(self) -> Sequence[Job]:
            found = await super().jobs()
            self.reads += 1
            await self.go_on.wait()
            return found

    store = Slow(MemoryControlState())
    jobs = Jobs(store, [Count()], "router-1", SystemClock())
    await jobs.start("count", {"to": "3"}, "ann")
    store.go_on.clear()
    look = asyncio.create_task(jobs.look())
    await eventually(lambda: store.reads == 1)
    await jobs.pause("count-1", "ben")
    store.go_on.set()
    await look
    assert state_of(jobs) is JobState.PAUSED


async def test_a_step_that_takes_too_long_is_ended_and_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "LONGEST_STEP_SECONDS", 0.05)
    kind = Count()
    async with running_jobs(kind, MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "3"}, "ann")
        await eventually(lambda: bool(jobs.view) and "a step took longer than 0.05 s" in jobs.view[0].waits)
        kind.gate.set()
        await finished(jobs)
    assert kind.cancelled >= 1 and kind.done == [0, 1, 2]


async def test_the_pauses_of_a_job_that_cannot_go_on_grow_and_begin_anew_after_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Troubled(Count):
        tries = 0

        async def step(self, at: Position) -> Step:
            self.tries += 1
            if self.tries not in (8, 10):
                raise StoreNotReady("starting")
            return await super().step(at)

    pauses: list[float] = []

    async def wait(run: Run, seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Run, "_wait", wait)
    async with running_jobs(Troubled(gate=open_gate()), MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "10"}, "ann")
        await finished(jobs)
    assert [pause for pause in pauses if pause] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.1]


@pytest.mark.parametrize(("rate", "limit"), [(0.0, 20_000), (1_000_000.0, 20_000), (40.0, 10), (1.0, 1)])
async def test_a_step_may_do_the_units_of_a_quarter_of_a_second_and_at_least_one(rate: float, limit: int) -> None:
    limits: list[int] = []

    class Limited(Count):
        async def step(self, at: Position) -> Step:
            limits.append(at.limit)
            return await super().step(at)

    async with running_jobs(Limited(gate=open_gate()), MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "1"}, "ann", rate)
        await finished(jobs)
    assert limits == [limit]


def test_a_report_is_bounded_by_its_bytes() -> None:
    assert checked(Step(b"", report="x" * MAX_REPORT_BYTES))
    with pytest.raises(ValueError, match="a report of"):
        checked(Step(b"", report="é" * (MAX_REPORT_BYTES // 2) + "x"))


async def test_more_than_can_be_written_down_is_a_defect_of_the_kind() -> None:
    class Greedy(Count):
        async def step(self, at: Position) -> Step:
            return Step(b"x" * (MAX_CHECKPOINT_BYTES + 1))

    async with running_jobs(Greedy(), MemoryControlState()) as jobs:
        await jobs.start("count", {"to": "1"}, "ann")
        await eventually(lambda: state_of(jobs) is JobState.FAILED)
        assert "a checkpoint of 65537 bytes: at most 65536" in jobs.view[0].note


async def test_only_a_finished_job_of_the_lane_counts_as_its_last_end() -> None:
    kind = Count(gate=open_gate())
    async with running_jobs(kind, MemoryControlState()) as jobs:
        kind.trouble = JobFailed("it cannot")
        await jobs.start("count", {"to": "3"}, "ann")
        await eventually(lambda: state_of(jobs) is JobState.FAILED)
        assert jobs.finished_seconds_ago("count") is None
        kind.trouble = None
        await jobs.resume("count-1", "ann")
        await finished(jobs)
        assert jobs.finished_seconds_ago("another") is None
        ago = jobs.finished_seconds_ago("count")
        assert ago is not None and 0 <= ago < 60

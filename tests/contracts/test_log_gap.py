"""The gap that restarted feeds leave stands until a reconcile job has closed it, on every control store."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from services.router.control.port import KEPT_JOBS
from services.router.core.differences import Findings
from services.router.core.evidence import Evidence
from services.router.core.gates.data import lag
from services.router.core.gates.gate import INCONCLUSIVE, PASS
from services.router.core.jobs import Job, JobState
from services.router.core.thresholds import Limits
from services.router.flows.jobs.log_gap import GapWatch, gap, open_gap
from services.router.flows.jobs.reconcile_job import NAME
from tests.contracts.control_adapters import OpenControl, ReportingStore

CLEAN = Findings(records=5, found=Counter({"MISSING": 2}), repaired=2).to_json()
LEFT = Findings(records=5, found=Counter({"MISSING": 2}), repaired=1).to_json()


async def added(control: ReportingStore, state: JobState, *, report: str = "", repair: str = "yes") -> Job:
    job = await control.add(Job(NAME, NAME, "ann", {"repair": repair}))
    changed = await control.put(replace(job, state=state, report=report))
    assert changed is not None
    return changed


async def ended(control: ReportingStore, job: Job, state: JobState, report: str = "") -> None:
    assert await control.put(replace(job, state=state, report=report)) is not None


async def test_no_gap_stands_before_the_feeds_were_restarted(control: ReportingStore) -> None:
    await added(control, JobState.FINISHED, report=LEFT)
    assert await gap(control) == ""


async def test_a_gap_outlives_the_routers_and_names_the_job_to_wait_for(open_control: OpenControl) -> None:
    async with open_control(None) as one:
        await open_gap(one)
        job = await added(one, JobState.RUNNING)
    async with open_control(None) as later:
        assert f"wait until {job.id} has finished" in await gap(later)
        await ended(later, job, JobState.FINISHED, CLEAN)
        assert await gap(later) == ""


@pytest.mark.parametrize(
    ("state", "report", "repair", "remedy"),
    [
        (JobState.FAILED, "", "yes", "reconcile-2 is FAILED: resume it"),
        (JobState.PAUSED, "", "yes", "reconcile-2 is PAUSED: resume it"),
        (JobState.CANCELLED, CLEAN, "yes", "run baton reconcile"),
        (JobState.FINISHED, LEFT, "yes", "reconcile-2 left 1 differences"),
        (JobState.FINISHED, CLEAN, "no", "run baton reconcile"),
        (JobState.RUNNING, CLEAN, "no", "run baton reconcile"),
    ],
)
async def test_a_job_that_did_not_copy_everything_leaves_the_gap(
    control: ReportingStore, state: JobState, report: str, repair: str, remedy: str
) -> None:
    await added(control, JobState.FINISHED, report=CLEAN)
    await open_gap(control)
    await added(control, state, report=report, repair=repair)
    assert remedy in await gap(control)


async def test_a_job_that_was_added_before_the_feeds_were_restarted_closes_no_gap(control: ReportingStore) -> None:
    early = await added(control, JobState.RUNNING)
    await open_gap(control)
    await ended(control, early, JobState.FINISHED, CLEAN)
    assert "run baton reconcile" in await gap(control)


async def test_a_closed_gap_stays_closed_when_its_job_is_forgotten_and_opens_anew(control: ReportingStore) -> None:
    await open_gap(control)
    await added(control, JobState.FINISHED, report=CLEAN)
    assert await gap(control) == ""
    for _ in range(KEPT_JOBS):
        await added(control, JobState.FINISHED, report=LEFT)
    assert await gap(control) == ""
    await open_gap(control)
    assert "run baton reconcile" in await gap(control)


async def test_gates_do_not_pass_over_a_gap(control: ReportingStore) -> None:
    seen = Evidence(lag_seconds=0.0, under_way=())
    watch = GapWatch(control)
    assert lag(watch.evidence(seen), Limits()).verdict is INCONCLUSIVE, "before the first look"
    await watch.look()
    assert lag(watch.evidence(seen), Limits()).verdict is PASS
    await open_gap(control)
    await watch.look()
    assert lag(watch.evidence(seen), Limits()) == (INCONCLUSIVE, watch.text, 0, 0)
    assert watch.evidence(seen).under_way == (watch.text,)

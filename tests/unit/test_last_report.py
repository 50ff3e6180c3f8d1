"""The report of a lane's last finished job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from libs.clock import ManualClock
from services.router.core.jobs import Job, JobState
from services.router.flows.jobs.last_report import LastReport

JOB = Job("count", "count", "ann", state=JobState.FINISHED, ended_seconds=1_700_000_000.0)


class Known:
    def __init__(self, *jobs: Job) -> None:
        self.kept = jobs

    @property
    def view(self) -> Sequence[Job]:
        return [replace(job, report="") for job in self.kept]

    async def job(self, job_id: str) -> Job:
        return next(job for job in self.kept if job.id == job_id)


async def test_only_the_newest_finished_job_of_the_lane_is_read() -> None:
    clock = ManualClock(1_700_000_060.0)
    jobs = Known(
        replace(JOB, id="count-5", state=JobState.CANCELLED, report="5"),
        replace(JOB, id="other-4", lane="other", report="4"),
        replace(JOB, id="count-3", report="3"),
        replace(JOB, id="count-2", report="2"),
    )
    last = LastReport(jobs, "count", int, clock)  # type: ignore[arg-type]
    assert (last.report, last.seconds_ago) == (None, 0.0)
    await last.look()
    assert last.job is not None
    assert (last.report, last.job.id, last.seconds_ago) == (3, "count-3", 60.0)
    jobs.kept = (replace(JOB, id="count-6", report="6", ended_seconds=1_700_000_050.0), *jobs.kept)
    await last.look()
    assert (last.report, last.seconds_ago) == (6, 10.0)

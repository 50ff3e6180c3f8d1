"""The report of a lane's last finished job, as evidence for gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from libs.clock import Age, Clock
from services.router.core.jobs import Job, JobState
from services.router.flows.jobs.runner import Jobs

T = TypeVar("T")


class LastReport(Generic[T]):
    """`look` is the caller's to call, every now and then."""

    def __init__(self, jobs: Jobs, lane: str, read: Callable[[str], T], clock: Clock) -> None:
        """`read`: the report from its text."""
        self._jobs = jobs
        self._lane = lane
        self._read = read
        self._age = Age(clock)
        self.job: Job | None = None
        """None: no job was finished, or none was looked at."""
        self.report: T | None = None

    async def look(self) -> None:
        """Raises ControlUnavailable, JobNotFound; what is known then stays."""
        last = next((one for one in self._jobs.view if one.lane == self._lane and one.state is JobState.FINISHED), None)
        if last is None or (self.job is not None and last.id == self.job.id):
            return
        job = await self._jobs.job(last.id)
        self.report, self.job = self._read(job.report), job
        # The age grows from the first look on.
        self._age.seconds(job.ended_seconds)

    @property
    def seconds_ago(self) -> float:
        """Since the job ended, below 0 if dated in the future; 0 if there is none."""
        return self._age.seconds(self.job.ended_seconds) if self.job is not None else 0.0

"""The report of the last finished job of a lane, as evidence for gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from libs.clock import Age, Clock
from services.router.core.jobs import Job, JobState
from services.router.flows.jobs.runner import Jobs

T = TypeVar("T")


class LastReport(Generic[T]):
    """The last report of a lane. The caller calls `look` regularly."""

    def __init__(self, jobs: Jobs, lane: str, read: Callable[[str], T], clock: Clock) -> None:
        """`read` parses a report."""
        self._jobs = jobs
        self._lane = lane
        self._read = read
        self._age = Age(clock)
        self.job: Job | None = None
        """The last finished job; None if there is none, or before the first look."""
        self.report: T | None = None

    async def look(self) -> None:
        """Read the last report. Raises ControlUnavailable, JobNotFound, and then keeps the former report."""
        last = next((one for one in self._jobs.view if one.lane == self._lane and one.state is JobState.FINISHED), None)
        if last is None or (self.job is not None and last.id == self.job.id):
            return
        job = await self._jobs.job(last.id)
        self.report, self.job = self._read(job.report), job
        # Start the age at the first look.
        self._age.seconds(job.ended_seconds)

    @property
    def seconds_ago(self) -> float:
        """Seconds since the job ended; negative if its end is in the future, 0 if there is no job."""
        return self._age.seconds(self.job.ended_seconds) if self.job is not None else 0.0

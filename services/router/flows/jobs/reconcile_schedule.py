"""Starts a reconcile job every few minutes, and keeps the last result. Every router does so; one job at a time runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from libs.clock import Clock
from libs.tasks import Loop
from services.router.control.codec import number_of_job
from services.router.core.differences import Compared, Findings
from services.router.core.evidence import Evidence
from services.router.core.jobs import JobState
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.jobs.last_report import LastReport
from services.router.flows.jobs.reconcile_job import NAME
from services.router.flows.jobs.runner import Jobs

INTERVAL_SECONDS = 1.0
ACTOR = "baton"


class ReconcileSchedule:
    """The schedule of reconcile jobs. The caller runs `loop`."""

    def __init__(self, jobs: Jobs, interval_seconds: float, clock: Clock) -> None:
        """`interval_seconds`: time from the end of a comparison to the next one; 0: start none."""
        self._jobs = jobs
        self._interval = interval_seconds
        self._clock = clock
        self._last = LastReport(jobs, NAME, Findings.from_json, clock)
        self._newest = ""
        """The newest job after which the interval starts."""
        self._newest_seen = clock.monotonic()
        self.loop = Loop("reconciling", self._body)

    async def look(self) -> None:
        """Read the last result, and start a job if one is due. Raises ControlUnavailable."""
        await self._last.look()
        if self._is_due():
            await self._jobs.start(NAME, {}, ACTOR)

    def evidence(self, evidence: Evidence) -> Evidence:
        """The evidence with the result of the last comparison."""
        found = self._last.report
        if found is None:
            return evidence
        compared = Compared(self._last.seconds_ago, found.records, found.different, found.left)
        return replace(evidence, compared=compared)

    def _is_due(self) -> bool:
        """Whether to start a job. Not before the first backfill, because all records differ until then. Not after a
        failure or a pause, because then an operator decides."""
        latest = self._jobs.latest(NAME)
        if not self._interval or self._jobs.trouble or (latest is not None and not latest.state.ended):
            return False
        done = [job for job in self._jobs.view if job.lane == TO_B and job.state is JobState.FINISHED]
        if not done:
            return False
        newest = max([*done, *([] if latest is None else [latest])], key=lambda job: number_of_job(job.id))
        if newest.id != self._newest:
            self._newest, self._newest_seen = newest.id, self._clock.monotonic()
        # Wall time, but a clock that has jumped delays a comparison by one interval at most.
        ago = max(self._clock.now() - newest.ended_seconds, self._clock.monotonic() - self._newest_seen)
        return ago >= self._interval

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

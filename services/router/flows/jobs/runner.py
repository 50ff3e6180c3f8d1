"""Jobs at one router: adds jobs, takes over those without a run, and runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.tasks import Loop
from services.router.control.port import ControlUnavailable
from services.router.core import jobs as rules
from services.router.core.jobs import Job, JobState, JobUnderWay
from services.router.core.throttle import Load, ThrottleLimits
from services.router.flows.jobs.kind import ArgumentCheck, JobKind, log_job
from services.router.flows.jobs.run import (
    CANCEL_SECONDS,
    CHANGES,
    LEASE_SECONDS,
    LOOK_SECONDS,
    JobStore,
    Run,
    lease_of,
    wait,
)

MAX_JOBS = 8
"""Maximum number of concurrent jobs at one router."""


USUAL_LIMITS = ThrottleLimits()


def no_load() -> Load:
    """An unknown load, which does not slow jobs down."""
    return Load()


class Jobs:
    """All jobs, as one router sees them. The process runs `loop`. Any router accepts orders."""

    def __init__(
        self,
        store: JobStore,
        kinds: Iterable[JobKind],
        holder: str,
        clock: Clock,
        load: Callable[[], Load] = no_load,
        limits: ThrottleLimits = USUAL_LIMITS,
    ) -> None:
        """`holder`: this router's name. `load`: the current load of live traffic."""
        self._store = store
        self._kinds: dict[str, JobKind] = {}
        self._holder = holder
        self._clock = clock
        self._load = load
        self._limits = limits
        self._view: tuple[Job, ...] = ()
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self.known = False
        """Whether this router has read the jobs since its start."""
        self.trouble = ""
        """Reason why this router cannot read the jobs; "" if it can."""
        self.loop = Loop("jobs", self._body, first_pause_seconds=0.1, longest_pause_seconds=1.0)
        self.register(kinds)

    def __repr__(self) -> str:
        return f"<Jobs {sorted(self._runs)} trouble={self.trouble!r}>"

    def register(self, kinds: Iterable[JobKind]) -> None:
        """Accept and run jobs of these kinds from now on."""
        self._kinds.update({kind.name: kind for kind in kinds})

    @property
    def view(self) -> Sequence[Job]:
        """All jobs, newest first, without checkpoint and report. Half a second old, or older while the control store is
        unavailable."""
        if not self.trouble:
            return self._view
        waits = f"the control store is unavailable: {self.trouble}"
        return [job if job.state.ended else replace(job, waits=waits, per_second=0.0) for job in self._view]

    def latest(self, lane: str) -> Job | None:
        """The newest job of a lane, as of the last look."""
        return next((job for job in self.view if job.lane == lane), None)

    def finished_seconds_ago(self, lane: str) -> float | None:
        """Seconds since the last finished job of this lane, by wall time; None if there is none."""
        ends = [job.ended_seconds for job in self._view if job.lane == lane and job.state is JobState.FINISHED]
        return max(0.0, self._clock.now() - max(ends)) if ends else None

    def unit(self, kind: str) -> str:
        known = self._kinds.get(kind)
        return known.unit if known else "units"

    async def wanted(
        self, kind: str, arguments: Mapping[str, str], actor: str, rate: float = 0.0, *, reason: str = ""
    ) -> Job:
        """A new job with checked arguments. Raises InvalidField."""
        rules.check_actor(actor)
        rules.check_rate(rate)
        known = self._kinds.get(kind)
        if known is None:
            raise InvalidField("kind", kind, "one of " + ", ".join(sorted(self._kinds)))
        lane = known.lane(arguments)
        if isinstance(known, ArgumentCheck):
            await known.check(arguments)
        return Job(kind, lane, actor, dict(arguments), rate, note=f"requested by {actor}", reason=reason)

    async def check_lane(self, wanted: Job) -> Job | None:
        """Check whether `add` would refuse the job. Returns the job under way that `add` would return. Raises
        JobUnderWay, ControlUnavailable."""
        return await self._in_lane(wanted)

    async def under_way(self, lane: str) -> Job | None:
        """The job of a lane that has not ended, read from the control store. Raises ControlUnavailable."""
        return next((job for job in await self._store.jobs() if job.lane == lane and not job.state.ended), None)

    async def _in_lane(self, wanted: Job) -> Job | None:
        job = await self.under_way(wanted.lane)
        return None if job is None else rules.same(job, wanted)

    async def start(self, kind: str, arguments: Mapping[str, str], actor: str, rate: float = 0.0) -> Job:
        """Add a job. If one with the same arguments is under way, return it, so that a repeated order finds its job.
        Raises InvalidField, JobUnderWay, ControlUnavailable."""
        return await self.add(await self.wanted(kind, arguments, actor, rate))

    async def add(self, job: Job) -> Job:
        """Add a job that `wanted` has made, as `start` does. Raises JobUnderWay, ControlUnavailable."""
        try:
            added = await self._store.add(replace(job, created_seconds=self._clock.now()))
            log_job(added)
            return self._seen(added)
        except JobUnderWay:
            if (same := await self._in_lane(job)) is not None:
                return self._seen(same)
            raise

    async def job(self, job_id: str) -> Job:
        """The job with its report, read from the control store. Raises JobNotFound, ControlUnavailable."""
        return await self._store.job(job_id)

    async def pause(self, job_id: str, actor: str) -> Job:
        """Raises JobNotFound, JobRefused, InvalidField, ControlUnavailable; so do the next three methods."""
        return await self._change(job_id, lambda job: rules.pause(job, actor))

    async def resume(self, job_id: str, actor: str) -> Job:
        return await self._change(job_id, lambda job: rules.resume(job, actor))

    async def cancel(self, job_id: str, actor: str) -> Job:
        return await self._change(job_id, lambda job: rules.cancel(job, actor, self._clock.now()))

    async def tune(self, job_id: str, rate: float) -> Job:
        return await self._change(job_id, lambda job: rules.tune(job, rate))

    async def _change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        for _ in range(CHANGES):
            changed = await self._store.put(change(await self._store.job(job_id)))
            if changed is not None:
                log_job(changed)
                return self._seen(changed)
        raise ControlUnavailable(
            f"{job_id} was changed concurrently {CHANGES} times, so this order was not stored: try again"
        )

    def _seen(self, job: Job) -> Job:
        """Wake this router's runs, so that they obey the change at once."""
        self._note(job)
        self._changed.set()
        for run, _ in self._runs.values():
            run.changed.set()
        return job

    def _note(self, job: Job) -> None:
        """Update the view with a state that was just stored."""
        bare = replace(job, checkpoint=b"", report="")
        if any(known.id == job.id for known in self._view):
            self._view = tuple(bare if known.id == job.id else known for known in self._view)
        else:
            self._view = (bare, *self._view)

    async def _body(self, loop: Loop) -> None:
        """Look until it is cancelled, even while the control store is unavailable; then end this router's runs."""
        try:
            while True:
                self._changed.clear()
                try:
                    await self.look()
                except BatonError as error:
                    self.trouble = error.message
                else:
                    self.trouble = ""
                    loop.well()
                await wait(self._changed, LOOK_SECONDS)
        finally:
            await self._end()

    async def look(self) -> None:
        """Read all jobs, and start those that no router runs. Raises ControlUnavailable."""
        for job_id in [job_id for job_id, (_, task) in self._runs.items() if task.done()]:
            del self._runs[job_id]
        jobs = await self._store.jobs()
        # A state that this router stored during the read is newer.
        known = {job.id: job for job in self._view}
        self._view = tuple(max(known.get(job.id, job), job, key=lambda one: one.version) for job in jobs)
        self.known = True
        for job in reversed(self._view):
            kind = self._kinds.get(job.kind)
            if kind is None or not job.state.wants_a_runner or job.id in self._runs or len(self._runs) >= MAX_JOBS:
                continue
            if await self._store.lease(lease_of(job.id), self._holder, LEASE_SECONDS):
                run = self._run_of(kind, job.id)
                self._runs[job.id] = (run, asyncio.create_task(run.run()))

    def _run_of(self, kind: JobKind, job_id: str) -> Run:
        return Run(self._store, kind, job_id, self._holder, self._clock, self._load, self._limits, self._note)

    async def _end(self) -> None:
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2 * CANCEL_SECONDS)
        self._runs.clear()

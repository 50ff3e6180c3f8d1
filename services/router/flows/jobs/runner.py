"""Runs jobs at one router: asks for them, looks for those that nobody runs, and does their steps."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.tasks import Loop
from libs.text import plain
from services.router.control.codec import number_of_job
from services.router.control.port import ControlUnavailable, JobRecords
from services.router.core import jobs as rules
from services.router.core.jobs import Job, JobState, JobUnderWay
from services.router.core.throttle import Load, Throttle, ThrottleLimits
from services.router.flows.jobs.kind import Asking, JobFailed, JobKind, Position, Step, checked, log_job
from services.router.flows.rate import Rate

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
LOOK_SECONDS = 0.5
"""Between two looks at what is wanted: so long it takes at most until another router hears of an order."""
STEP_SECONDS = 0.25
"""About how long a step should take at the rate that it is given."""
LONGEST_STEP_SECONDS = 60.0
"""A step that takes longer has failed, and is done again."""
MAX_LIMIT = 20_000
"""Units that a step may do at most."""
MAX_JOBS = 8
"""Run by one router at once."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
_CHANGES = 20
"""Attempts at an order while the job's runner reports."""
_CANCEL_SECONDS = 1.0


class JobStore(JobRecords, Protocol):
    """What jobs need of the control store."""

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool: ...


def no_load() -> Load:
    """Nothing is known of live traffic: nothing slows a job down."""
    return Load()


@dataclass(frozen=True, slots=True)
class Around:
    """What jobs are run by, beside their store."""

    holder: str
    """This router among others."""
    clock: Clock
    load: Callable[[], Load] = no_load
    """What live traffic feels now."""
    limits: ThrottleLimits = field(default_factory=ThrottleLimits)


class Jobs:
    """All jobs, at one router. The process runs `loop`; orders may be given to any router."""

    def __init__(self, store: JobStore, kinds: Iterable[JobKind], around: Around) -> None:
        self._store = store
        self._kinds = {kind.name: kind for kind in kinds}
        self._around = around
        self._view: tuple[Job, ...] = ()
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._told = asyncio.Event()
        self.trouble = ""
        """Why orders are not seen now; "" when they are."""
        self.loop = Loop("jobs", self._body, first_pause_seconds=0.1, longest_pause_seconds=1.0)

    def __repr__(self) -> str:
        return f"<Jobs {sorted(self._runs)} trouble={self.trouble!r}>"

    @property
    def view(self) -> Sequence[Job]:
        """Half a second old, older while the control store is away; newest first, without checkpoint and report."""
        if not self.trouble:
            return self._view
        waits = f"the control store is away: {self.trouble}"
        return [job if job.state.ended else replace(job, waits=waits, per_second=0.0) for job in self._view]

    def latest(self, lane: str) -> Job | None:
        """The newest job of a lane, as of the last look."""
        return next((job for job in self.view if job.lane == lane), None)

    def finished_seconds_ago(self, lane: str) -> float | None:
        """Since the last job of this lane that was finished; None: none was. By wall time, for people and gates."""
        ends = [job.ended_seconds for job in self._view if job.lane == lane and job.state is JobState.FINISHED]
        return max(0.0, self._around.clock.now() - max(ends)) if ends else None

    def unit(self, kind: str) -> str:
        known = self._kinds.get(kind)
        return known.unit if known else "units"

    async def wanted(
        self, kind: str, arguments: Mapping[str, str], actor: str, rate: float = 0.0, *, reason: str = ""
    ) -> Job:
        """A job that may be asked for. Raises InvalidField."""
        rules.check_actor(actor)
        rules.check_rate(rate)
        known = self._kinds.get(kind)
        if known is None:
            raise InvalidField("kind", kind, "one of " + ", ".join(sorted(self._kinds)))
        lane = known.lane(arguments)
        if isinstance(known, Asking):
            await known.check(arguments)
        return Job(kind, lane, actor, dict(arguments), rate, note=f"asked for by {actor}", reason=reason)

    async def check_lane(self, wanted: Job) -> Job | None:
        """Refuse early what `add` would refuse. Returns the job under way that `add` would return. Raises JobUnderWay,
        ControlUnavailable."""
        return await self._in_lane(wanted)

    async def under_way(self, lane: str) -> Job | None:
        """The job of a lane that has not ended, asked of the control store now. Raises ControlUnavailable."""
        return next((job for job in await self._store.jobs() if job.lane == lane and not job.state.ended), None)

    async def _in_lane(self, wanted: Job) -> Job | None:
        job = await self.under_way(wanted.lane)
        return None if job is None else rules.same(job, wanted)

    async def start(self, kind: str, arguments: Mapping[str, str], actor: str, rate: float = 0.0) -> Job:
        """Ask for a job. A job under way with the same arguments is the answer, so that a repeated order finds its job.
        Raises InvalidField, JobUnderWay, ControlUnavailable."""
        return await self.add(await self.wanted(kind, arguments, actor, rate))

    async def add(self, job: Job) -> Job:
        """As `start`, of one that is `wanted`. Raises JobUnderWay, ControlUnavailable."""
        try:
            added = await self._store.add(replace(job, created_seconds=self._around.clock.now()))
            log_job(added)
            return self._seen(added)
        except JobUnderWay:
            if (same := await self._in_lane(job)) is not None:
                return self._seen(same)
            raise

    async def job(self, job_id: str) -> Job:
        """With its report. Raises JobNotFound, ControlUnavailable."""
        return await self._store.job(job_id)

    async def pause(self, job_id: str, actor: str) -> Job:
        """Raises JobNotFound, JobRefused, InvalidField, ControlUnavailable; as the next three do."""
        return await self._change(job_id, lambda job: rules.pause(job, actor))

    async def resume(self, job_id: str, actor: str) -> Job:
        return await self._change(job_id, lambda job: rules.resume(job, actor))

    async def cancel(self, job_id: str, actor: str) -> Job:
        return await self._change(job_id, lambda job: rules.cancel(job, actor, self._around.clock.now()))

    async def tune(self, job_id: str, rate: float) -> Job:
        return await self._change(job_id, lambda job: rules.tune(job, rate))

    async def _change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        for _ in range(_CHANGES):
            changed = await self._store.put(change(await self._store.job(job_id)))
            if changed is not None:
                log_job(changed)
                return self._seen(changed)
        raise ControlUnavailable(f"{job_id} was changed by others {_CHANGES} times; nothing was changed: try again")

    def _seen(self, job: Job) -> Job:
        """So that whoever runs it hears of it at once."""
        self._note(job)
        self._told.set()
        for run, _ in self._runs.values():
            run.told.set()
        return job

    def _note(self, job: Job) -> None:
        """So that whoever looks here next sees what was just written down."""
        bare = replace(job, checkpoint=b"", report="")
        if any(known.id == job.id for known in self._view):
            self._view = tuple(bare if known.id == job.id else known for known in self._view)
        else:
            self._view = (bare, *self._view)

    async def _body(self, loop: Loop) -> None:
        """Looks until it is cancelled; then ends what runs here. The control store may be away for long meanwhile."""
        try:
            while True:
                self._told.clear()
                try:
                    await self.look()
                except BatonError as error:
                    self.trouble = error.message
                else:
                    self.trouble = ""
                    loop.well()
                await _wait(self._told, LOOK_SECONDS)
        finally:
            await self._end()

    async def look(self) -> None:
        """Once: begins what wants a runner, if no other router runs it. Raises ControlUnavailable."""
        for job_id in [job_id for job_id, (_, task) in self._runs.items() if task.done()]:
            del self._runs[job_id]
        jobs = await self._store.jobs()
        # What was written down here while they were read is newer.
        known = {job.id: job for job in self._view}
        self._view = tuple(max(known.get(job.id, job), job, key=lambda one: one.version) for job in jobs)
        for job in reversed(self._view):
            kind = self._kinds.get(job.kind)
            if kind is None or not job.state.wants_a_runner or job.id in self._runs or len(self._runs) >= MAX_JOBS:
                continue
            if await self._store.lease(lease_of(job.id), self._around.holder, LEASE_SECONDS):
                run = Run(self._store, kind, job.id, self._around, self._note)
                self._runs[job.id] = (run, asyncio.create_task(run.run()))

    async def _end(self) -> None:
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2 * _CANCEL_SECONDS)
        self._runs.clear()


def lease_of(job_id: str) -> str:
    return f"job:{job_id}"


class _Lost(Exception):
    """Another router runs the job now, or nobody is to run it any more."""


class Run:
    """One run of one job, by the router that has its lease. Owned by `Jobs`, which starts `run` once."""

    def __init__(
        self, store: JobStore, kind: JobKind, job_id: str, around: Around, note: Callable[[Job], None]
    ) -> None:
        """`note` is told what was written down."""
        self._note = note
        self._store = store
        self._kind = kind
        self._id = job_id
        self._around = around
        self._claim = uuid.uuid4().hex
        self._throttle = Throttle(around.limits)
        self._rate = Rate(around.clock)
        self._allowed = 0.0
        self._slowed = ""
        self._next_look = 0.0
        self._job = Job(kind.name, "", "")
        self.told = asyncio.Event()
        """Somebody has changed the job: look now."""

    async def run(self) -> None:
        """Until the job ends, is stopped, or is another router's."""
        try:
            self._job = await self._store.job(self._id)
            await self._save(lambda job: rules.claim(job, self._claim, self._around.holder), claiming=True)
            while await self._do():
                pass
        except _Lost:
            pass
        except BatonError as error:
            # Nothing is lost: what was not written down is done again, here or elsewhere.
            log.warning("%s: this run ends: %s", self._id, error.message)
        finally:
            with suppress(ControlUnavailable):
                await self._store.lease(lease_of(self._id), self._around.holder, 0.0)

    async def _do(self) -> bool:
        """Steps until one fails, then a pause; False when the job has ended."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                step, began = await self._step()
            except _Lost:
                raise
            except JobFailed as failure:
                await self._fail(failure.message)
                return False
            except (BatonError, OSError, TimeoutError) as error:
                why = error.message if isinstance(error, BatonError) else str(error) or type(error).__name__
                await self._save(lambda job, why=why: _waiting(job, why))  # type: ignore[misc]
                await self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            # The run is the outermost owner of its steps: a defect ends the job, loudly, and not the router.
            except Exception as error:
                log.exception("%s failed by a defect", self._id)
                await self._fail(f"a defect: {type(error).__name__}: {error}")
                return False
            pause = FIRST_PAUSE_SECONDS
            self._rate.add(step.done)
            await self._save(lambda job, step=step: self._after(job, step))  # type: ignore[misc]
            if step.finished:
                return False
            earliest = began + step.done / self._allowed if self._allowed else 0.0
            await self._wait(max(earliest - self._around.clock.monotonic(), step.wait_seconds))

    async def _step(self) -> tuple[Step, float]:
        """One step, and when it began. Raises what the kind raises, TimeoutError, _Lost."""
        await self._look()
        job, began = self._job, self._around.clock.monotonic()
        limit = MAX_LIMIT if not self._allowed else max(1, min(MAX_LIMIT, int(self._allowed * STEP_SECONDS)))
        # Ids begin anew with another control store.
        name = f"{job.id} of {job.created_seconds:.3f}"
        at = Position(
            job.arguments,
            job.checkpoint,
            limit,
            job.done,
            job.report,
            name,
            number_of_job(job.id),
            job.actor,
            job.reason,
            self._claim,
        )
        task = asyncio.ensure_future(self._kind.step(at))
        try:
            async with asyncio.timeout(LONGEST_STEP_SECONDS):
                while not task.done():
                    await asyncio.wait({task}, timeout=LOOK_SECONDS)
                    await self._look(in_step=True)
            return checked(task.result()), began
        except TimeoutError:
            raise TimeoutError(f"a step took longer than {plain(LONGEST_STEP_SECONDS)} s") from None
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_CANCEL_SECONDS)
                if task.done() and not task.cancelled() and task.exception() is not None:
                    log.warning("%s: a step that was cancelled failed: %r", self._id, task.exception())

    async def _look(self, *, in_step: bool = False) -> None:
        """Keeps the lease, reads the orders, and paces by the live traffic; twice a second, and when told.

        Raises _Lost: at once when the claim is gone; when the job is paused, not before the step has ended.
        """
        now = self._around.clock.monotonic()
        if now >= self._next_look or self.told.is_set():
            self.told.clear()
            if not await self._store.lease(lease_of(self._id), self._around.holder, LEASE_SECONDS):
                raise _Lost
            self._job = await self._store.job(self._id)
            self._check()
            pace = self._throttle.look(self._around.load(), self._job.rate, self._rate.per_second)
            self._allowed, self._slowed = pace
            self._next_look = now + LOOK_SECONDS
        if not in_step and self._job.state is not JobState.RUNNING:
            raise _Lost

    async def _wait(self, seconds: float) -> None:
        """Hears of orders meanwhile; a new rate ends the wait."""
        end = self._around.clock.monotonic() + seconds
        rate = self._job.rate
        while (left := end - self._around.clock.monotonic()) > 0 and self._job.rate == rate:
            await _wait(self.told, min(left, LOOK_SECONDS))
            await self._look()

    def _after(self, job: Job, step: Step) -> Job:
        done = job.done + step.done
        job = replace(
            job,
            done=done,
            total=max(step.total or job.total, done) if step.total or job.total else 0,
            checkpoint=step.checkpoint,
            report=job.report if step.report is None else step.report,
        )
        if step.finished:
            return rules.finish(job, step.note or "finished", self._around.clock.now())
        if job.state is not JobState.RUNNING:
            return job
        note = step.note or job.note
        return replace(job, per_second=self._rate.per_second, waits=step.waits or self._slowed, note=note)

    async def _fail(self, why: str) -> None:
        await self._save(lambda job: rules.fail(job, why, self._around.clock.now()))

    async def _save(self, change: Callable[[Job], Job], *, claiming: bool = False) -> None:
        """Raises _Lost, ControlUnavailable."""
        for _ in range(_CHANGES):
            before = self._job.state
            saved = await self._store.put(change(self._job))
            if saved is not None:
                self._job = saved
                if claiming or saved.state is not before:
                    log_job(saved)
                self._note(saved)
                return
            self._job = await self._store.job(self._id)
            if not claiming:
                self._check()
        raise ControlUnavailable(f"{self._id} was changed by others {_CHANGES} times")

    def _check(self) -> None:
        if self._job.claim != self._claim:
            raise _Lost


def _waiting(job: Job, why: str) -> Job:
    return replace(job, per_second=0.0, waits=why) if job.state is JobState.RUNNING else job


async def _wait(told: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await told.wait()

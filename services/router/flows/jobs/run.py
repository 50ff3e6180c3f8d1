"""One run of one job: claims the job, does its steps one at a time, and stores each."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from libs.clock import Clock
from libs.errors import BatonError
from libs.text import plain
from services.router.control.codec import number_of_job
from services.router.control.port import ControlUnavailable, JobRecords
from services.router.core import jobs as rules
from services.router.core.jobs import Job, JobState
from services.router.core.throttle import Load, Throttle, ThrottleLimits
from services.router.flows.jobs.kind import JobFailed, JobKind, Position, Step, checked, log_job
from services.router.flows.rate import Rate

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
LOOK_SECONDS = 0.5
"""Interval at which a run reads its job: the longest time until it obeys an order to another router."""
STEP_SECONDS = 0.25
"""Time that a step should take at its rate."""
LONGEST_STEP_SECONDS = 60.0
"""Time after which a step fails and is repeated."""
MAX_LIMIT = 20_000
"""Maximum number of units in a step."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
CHANGES = 20
"""Maximum number of attempts to change a job while others change it too."""
CANCEL_SECONDS = 1.0


class JobStore(JobRecords, Protocol):
    """The part of the control store that jobs use."""

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool: ...


def lease_of(job_id: str) -> str:
    return f"job:{job_id}"


class _Lost(Exception):
    """The run has lost its job: another router runs it, or an operator has stopped it."""


class Run:
    """One run of a job by the router that holds its lease. `Jobs` owns it and calls `run` once."""

    def __init__(
        self,
        store: JobStore,
        kind: JobKind,
        job_id: str,
        holder: str,
        clock: Clock,
        load: Callable[[], Load],
        limits: ThrottleLimits,
        note: Callable[[Job], None],
    ) -> None:
        """`note` is called with each state of the job that was stored."""
        self._store = store
        self._kind = kind
        self._id = job_id
        self._holder = holder
        self._clock = clock
        self._load = load
        self._note = note
        self._claim = uuid.uuid4().hex
        self._throttle = Throttle(limits)
        self._rate = Rate(clock)
        self._allowed = 0.0
        self._slowed = ""
        self._next_look = 0.0
        self._job = Job(kind.name, "", "")
        self.changed = asyncio.Event()
        """Set when this router has changed the job."""

    async def run(self) -> None:
        """Run until the job ends, is stopped, or another router runs it."""
        try:
            self._job = await self._store.job(self._id)
            await self._save(lambda job: rules.claim(job, self._claim, self._holder), claiming=True)
            while await self._do():
                pass
        except _Lost:
            pass
        except BatonError as error:
            # Work that was not stored is repeated, here or at another router.
            log.warning("%s: this run ends: %s", self._id, error.message)
        finally:
            with suppress(ControlUnavailable):
                await self._store.lease(lease_of(self._id), self._holder, 0.0)

    async def _do(self) -> bool:
        """Do steps until the job has ended; then return False. Pauses after a step that failed."""
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
            # No caller above the run handles an error of a step, so a defect fails the job and not the router.
            except Exception as error:
                log.exception("%s failed: a defect of the program", self._id)
                await self._fail(f"a defect of the program: {type(error).__name__}: {error}")
                return False
            pause = FIRST_PAUSE_SECONDS
            self._rate.add(step.done)
            await self._save(lambda job, step=step: self._after(job, step))  # type: ignore[misc]
            if step.finished:
                return False
            earliest = began + step.done / self._allowed if self._allowed else 0.0
            await self._wait(max(earliest - self._clock.monotonic(), step.wait_seconds))

    async def _step(self) -> tuple[Step, float]:
        """Do one step. Returns it with the time at which it began. Raises the kind's errors, TimeoutError, _Lost."""
        await self._look()
        job, began = self._job, self._clock.monotonic()
        limit = MAX_LIMIT if not self._allowed else max(1, min(MAX_LIMIT, int(self._allowed * STEP_SECONDS)))
        # Ids start again with another control store.
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
                await asyncio.wait({task}, timeout=CANCEL_SECONDS)
                if task.done() and not task.cancelled() and task.exception() is not None:
                    log.warning("%s: a step that was cancelled failed: %r", self._id, task.exception())

    async def _look(self, *, in_step: bool = False) -> None:
        """Renew the lease, read the job, and set the pace by the live traffic: twice a second, and after a change here.

        Raises _Lost: at once if another run has the claim; after the current step if the job is paused.
        """
        now = self._clock.monotonic()
        if now >= self._next_look or self.changed.is_set():
            self.changed.clear()
            if not await self._store.lease(lease_of(self._id), self._holder, LEASE_SECONDS):
                raise _Lost
            self._job = await self._store.job(self._id)
            self._check()
            pace = self._throttle.look(self._load(), self._job.rate, self._rate.per_second)
            self._allowed, self._slowed = pace
            self._next_look = now + LOOK_SECONDS
        if not in_step and self._job.state is not JobState.RUNNING:
            raise _Lost

    async def _wait(self, seconds: float) -> None:
        """Wait, and look for orders meanwhile. A new rate ends the wait."""
        end = self._clock.monotonic() + seconds
        rate = self._job.rate
        while (left := end - self._clock.monotonic()) > 0 and self._job.rate == rate:
            await wait(self.changed, min(left, LOOK_SECONDS))
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
            return rules.finish(job, step.note or "finished", self._clock.now())
        if job.state is not JobState.RUNNING:
            return job
        note = step.note or job.note
        return replace(job, per_second=self._rate.per_second, waits=step.waits or self._slowed, note=note)

    async def _fail(self, why: str) -> None:
        await self._save(lambda job: rules.fail(job, why, self._clock.now()))

    async def _save(self, change: Callable[[Job], Job], *, claiming: bool = False) -> None:
        """Store a change of the job. Raises _Lost, ControlUnavailable."""
        for _ in range(CHANGES):
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
        raise ControlUnavailable(f"{self._id} was changed concurrently {CHANGES} times")

    def _check(self) -> None:
        if self._job.claim != self._claim:
            raise _Lost


def _waiting(job: Job, why: str) -> Job:
    return replace(job, per_second=0.0, waits=why) if job.state is JobState.RUNNING else job


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than this."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

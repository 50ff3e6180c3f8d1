"""The port of a job kind. A job is long work that survives its router: one router at a time runs it, and operators can
pause, tune or cancel it while it runs.

To add a kind, write a class with `name`, `unit`, `lane` and `step` (see `JobKind`) and add it to the `kinds` of a
feature (`services.router.features`). `Jobs` and `Run` do the rest for all kinds: requests, leases, progress, rate,
reasons to wait, pauses, and the continuation after a crash.

A kind does one step at a time. A step starts at a `Position`, does a bounded piece of work, and returns a `Step`, which
is then stored. A router may die before the step is stored, or be so slow that another one takes over. So a step must be
safe to repeat and safe to run late. A step reads its state from the checkpoint or from the stores, never from
attributes of the kind, because the next step may run at another router.

    class Copy:
        name, unit = "copy", "records"

        def lane(self, arguments):                # validates the arguments; one job at a time in each lane
            if arguments.get("to") not in ("A", "B"):
                raise InvalidField("to", arguments.get("to", ""), "A or B")
            return f"copy to {arguments['to']}"

        async def step(self, at):
            page = await self._read(after=at.checkpoint.decode(), limit=min(at.limit, 500))
            await self._write(page.records)       # a repetition changes nothing
            return Step(page.last_key.encode(), done=len(page.records), total=page.total, finished=not page.more)

Failures. If a step raises a BatonError, the job shows the message as its reason to wait and repeats the step, without
limit, after a pause that doubles up to two seconds. `JobFailed` ends the run: the job is FAILED, and continues from its
checkpoint when an operator resumes it. Any other exception is a defect and also fails the job.

Pause and cancel. If a job is paused or tuned, the current step finishes. If it is cancelled, the step gets a
CancelledError. The step cleans up in a `finally`, within a bound. A crash skips the cleanup, so the next step must be
able to do it.

Rate. `Position.limit` is the number of units that the step may do in about a quarter of a second. It follows from the
operator's rate and from the throttle, which slows jobs down while live traffic suffers
(`services.router.core.throttle`). A step may do fewer. After a step that did more, the pause is longer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from libs.errors import BatonError
from services.router.core.jobs import MAX_CHECKPOINT_BYTES, MAX_REPORT_BYTES, Job

log = logging.getLogger(__name__)


class JobFailed(BatonError):
    """The job cannot continue until an operator intervenes."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_FAILED"


@dataclass(frozen=True, slots=True)
class Position:
    """The start of a step."""

    arguments: Mapping[str, str]
    """Arguments that `JobKind.lane` has accepted."""
    checkpoint: bytes
    """Checkpoint of the last step; empty for the first one."""
    limit: int
    """Maximum number of units for the step, at least 1."""
    done: int = 0
    """Units done so far."""
    report: str = ""
    """Report of the last step."""
    job: str = ""
    """Name of the job, unique across control stores and the same in each step."""
    number: int = 0
    """Number of the job in its control store; later jobs have higher numbers."""
    actor: str = ""
    """Operator or program that started the job."""
    reason: str = ""
    """Reason that the actor gave."""
    run: str = ""
    """Id of this run. It changes after a crash, a pause, or an outage of the control store. A step must discard
    measurements of another run: clocks and counters of two processes are not comparable."""


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step."""

    checkpoint: bytes
    """Position of the next step; at most `services.router.core.jobs.MAX_CHECKPOINT_BYTES` long."""
    done: int = 0
    """Units done in this step."""
    total: int = 0
    """Estimated units of the whole job; 0: unchanged."""
    note: str = ""
    """The job's current activity, or its outcome if `finished`; "": unchanged, or "finished"."""
    finished: bool = False
    report: str | None = None
    """JSON of the findings so far, at most MAX_REPORT_BYTES; None: unchanged."""
    waits: str = ""
    """Reason, in words, why the step did no work. The next step follows after `wait_seconds`."""
    wait_seconds: float = 0.0


class JobKind(Protocol):
    """A kind of job. A process has one object of each kind, which several jobs may use concurrently."""

    @property
    def name(self) -> str:
        """Name as in `baton jobs`, such as "backfill"; lower case, no spaces. Part of the job's id."""
        ...

    @property
    def unit(self) -> str:
        """Unit of progress, such as "records"."""
        ...

    def lane(self, arguments: Mapping[str, str]) -> str:
        """The lane of a job with these arguments. A lane runs one job at a time and keeps its latest ended jobs. The
        number of lanes must be small, so never one per record. Raises InvalidField."""
        ...

    async def step(self, at: Position) -> Step:
        """Do a bounded piece of the work, safe to repeat. Raises BatonError to wait, JobFailed to end."""
        ...


@runtime_checkable
class ArgumentCheck(Protocol):
    """A job kind whose arguments need I/O to be checked."""

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Check arguments that `lane` has accepted, before the job is added. Raises InvalidField, or another BatonError
        if such a job is not allowed now."""
        ...


def log_job(job: Job) -> None:
    """Log a change of a job's state."""
    log.info("job %s is %s (requested by %s): %s", job.id, job.state.value, job.actor, job.note or "started")


def checked(step: Step) -> Step:
    """The step. Raises ValueError if it is too large to be stored."""
    if len(step.checkpoint) > MAX_CHECKPOINT_BYTES:
        raise ValueError(f"a checkpoint of {len(step.checkpoint)} bytes: at most {MAX_CHECKPOINT_BYTES}")
    if step.report is not None and len(step.report.encode()) > MAX_REPORT_BYTES:
        raise ValueError(f"a report of {len(step.report.encode())} bytes: at most {MAX_REPORT_BYTES}")
    return step

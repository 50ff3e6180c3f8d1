"""Long work as jobs: they survive the router, one router at a time runs one, and operators steer it while it runs.

How to write a kind of job: a class with `name`, `unit`, `lane` and `step` (see `JobKind`), among the `kinds` of a
feature (`services.router.features`). `Jobs` and `Run` do the rest, once for all kinds: requests, who runs a job,
progress, rate, the reason why it waits, pausing, going on after a crash.

A kind does one step at a time. A step gets where the last one ended (`Position`), does a bounded piece of work and says
where it ended (`Step`), which is then written down. A router may die between the work and the writing, or be so slow
that another one takes over: so a step must be safe to do twice, and to do late. What it needs to know it must read from
its checkpoint or from the stores, never from its own attributes: the next step may run at another router.

    class Copy:
        name, unit = "copy", "records"

        def lane(self, arguments):                # checks what was asked for; one job at a time in each lane
            if arguments.get("to") not in ("A", "B"):
                raise InvalidField("to", arguments.get("to", ""), "A or B")
            return f"copy to {arguments['to']}"

        async def step(self, at):
            page = await self._read(after=at.checkpoint.decode(), limit=min(at.limit, 500))
            await self._write(page.records)       # a repetition changes nothing
            return Step(page.last_key.encode(), done=len(page.records), total=page.total, finished=not page.more)

Failures. What a step raises as a BatonError is a reason to wait: it is shown, and the step is done again after a pause
that doubles up to two seconds, for as long as it takes. `JobFailed` ends the run: the job is FAILED, and goes on from
its checkpoint when a person resumes it. Any other exception is a defect and ends it likewise.

Pausing and cancelling. A step that is under way is finished when its job is paused or tuned; when it is cancelled, the
step gets a CancelledError. What it has to clean up then it does in a `finally`, bounded; after a crash nobody does, so
the next step must be able to.

Rate. `Position.limit` is how many units the step may do: what the operator's rate, and the throttle, which slows jobs
down while live traffic suffers (`services.router.core.throttle`), leave for about a quarter of a second. A step may do
fewer. One that did more is paid for by a longer pause.
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
    """The job cannot go on without a person."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_FAILED"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a step begins."""

    arguments: Mapping[str, str]
    """As `JobKind.lane` has accepted them."""
    checkpoint: bytes
    """Of the last step; empty for the first one."""
    limit: int
    """Units that the step may do, at least 1."""
    done: int = 0
    """Units done so far."""
    report: str = ""
    """Of the last step."""
    job: str = ""
    """Of all jobs, this one; the same in each of its steps. A name that no other control store's job has."""
    number: int = 0
    """Of the job in its control store: later jobs have higher ones."""
    actor: str = ""
    reason: str = ""
    """Who asked for the job, and why."""
    run: str = ""
    """Id of this run. It changes after a crash, a pause, or an outage of the control store. A step may go on only with
    measurements of the same run: the clock and the counters of another process are not comparable with its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where a step ended."""

    checkpoint: bytes
    """At most `services.router.core.jobs.MAX_CHECKPOINT_BYTES`."""
    done: int = 0
    """Units of this step."""
    total: int = 0
    """Units in all, as far as is known; 0: as before."""
    note: str = ""
    """What the job does, or with `finished` how it ended; "": as before, or "finished"."""
    finished: bool = False
    report: str | None = None
    """JSON of what was found so far, at most MAX_REPORT_BYTES there; None: as before."""
    waits: str = ""
    """Why there was nothing to do, in words; then the next step comes after `wait_seconds`."""
    wait_seconds: float = 0.0


class JobKind(Protocol):
    """A kind of job. The process makes one object of it; several jobs of the kind may use it at once."""

    @property
    def name(self) -> str:
        """As in `baton jobs`: "backfill". Lower case, no spaces. Part of the job's id."""
        ...

    @property
    def unit(self) -> str:
        """What is counted: "records"."""
        ...

    def lane(self, arguments: Mapping[str, str]) -> str:
        """In which lane such a job is: of one lane, one job at a time may be under way, and the latest ones that ended
        are kept. There must be few lanes, so none per record. Raises InvalidField for arguments that make no sense."""
        ...

    async def step(self, at: Position) -> Step:
        """A bounded piece of the work, safe to do twice. Raises BatonError to wait, JobFailed to end."""
        ...


@runtime_checkable
class ArgumentCheck(Protocol):
    """A kind that has to ask somebody whether what it is asked for makes sense."""

    async def check(self, arguments: Mapping[str, str]) -> None:
        """After `lane` has accepted them, before there is a job. Raises InvalidField, or another BatonError that says
        why there must be no such job now."""
        ...


def log_job(job: Job) -> None:
    """One line for each change of a job's state."""
    log.info("job %s is %s (asked for by %s): %s", job.id, job.state.value, job.actor, job.note or "begins")


def checked(step: Step) -> Step:
    """Raises ValueError for a step that cannot be written down."""
    if len(step.checkpoint) > MAX_CHECKPOINT_BYTES:
        raise ValueError(f"a checkpoint of {len(step.checkpoint)} bytes: at most {MAX_CHECKPOINT_BYTES}")
    if step.report is not None and len(step.report.encode()) > MAX_REPORT_BYTES:
        raise ValueError(f"a report of {len(step.report.encode())} bytes: at most {MAX_REPORT_BYTES}")
    return step

"""The state of a job and its transitions. Pure.

A job is one row of the control store. Operators and the router that runs the job both change the row, by compare and
set on its `version`, so neither an order nor a report of progress overwrites the other. After a failed compare and set,
the caller reads the row again. The transitions are in one table:

    action   from                       to
    claim    QUEUED, RUNNING            RUNNING     by the router that holds the job's lease
    pause    QUEUED, RUNNING            PAUSED
    resume   PAUSED, FAILED             QUEUED      continues at the checkpoint
    cancel   all but ended states       CANCELLED
    tune     all but ended states       unchanged
    finish   RUNNING, PAUSED            FINISHED    by the router that has the claim: the step in progress during a
    fail     RUNNING, PAUSED            FAILED      pause may be the last one

FAILED is not an ended state: an operator resumes or cancels the job. FINISHED and CANCELLED are final.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from libs.errors import BatonError, InvalidField

MAX_RATE = 1_000_000.0
MAX_CHECKPOINT_BYTES = 64 * 1024
MAX_REPORT_BYTES = 1024 * 1024
MAX_ACTOR_CHARACTERS = 128


class JobRefused(BatonError):
    """The job's state does not allow this action."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_STATE"


class JobUnderWay(BatonError):
    """A job of this lane is under way; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_UNDER_WAY"


class JobState(Enum):
    QUEUED = "QUEUED"
    """Requested, and waiting for a router to start or continue it."""
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FAILED = "FAILED"
    FINISHED = "FINISHED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in _ENDED

    @property
    def wants_a_runner(self) -> bool:
        return self in _WORKABLE


_ENDED = frozenset({JobState.FINISHED, JobState.CANCELLED})
_WORKABLE = frozenset({JobState.QUEUED, JobState.RUNNING})

FROM: Mapping[str, frozenset[JobState]] = {
    "claim": _WORKABLE,
    "pause": _WORKABLE,
    "resume": frozenset({JobState.PAUSED, JobState.FAILED}),
    "cancel": frozenset(JobState) - _ENDED,
    "tune": frozenset(JobState) - _ENDED,
    "finish": frozenset({JobState.RUNNING, JobState.PAUSED}),
    "fail": frozenset({JobState.RUNNING, JobState.PAUSED}),
}
"""States in which an action is allowed, by action: the table above."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the control store has it."""

    kind: str
    """Name of the job kind, such as "backfill"."""
    lane: str
    """Name of the lane, such as "backfill to B". One job of a lane at a time may be under way."""
    actor: str
    """Operator or program that requested the job."""
    reason: str = field(default="", kw_only=True)
    """Reason that the actor gave; may be empty."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.0
    """Maximum units per second; 0: as fast as live traffic allows."""
    id: str = ""
    """Id that the control store assigned, such as "backfill-7"."""
    version: int = 0
    """Version for compare and set; grows with each change."""
    state: JobState = JobState.QUEUED
    claim: str = ""
    """Token of the run that may report progress; each run has its own."""
    runner: str = ""
    """Router that runs the job, or ran it last."""
    done: int = 0
    total: int = 0
    """Estimated units of the whole job; 0: unknown."""
    per_second: float = 0.0
    """Units per second, measured over the last seconds."""
    waits: str = ""
    """Reason why the job waits or is slowed down, in words; "" if it runs at full rate."""
    note: str = ""
    """The job's current activity or its outcome, in words."""
    checkpoint: bytes = b""
    """Position at which to continue, in the kind's own format; empty: the start."""
    report: str = ""
    """Findings, as JSON in the kind's own format; "" if there are none yet."""
    created_seconds: float = 0.0
    """UNIX time."""
    ended_seconds: float = 0.0
    """UNIX time of the end or of the failure; 0: under way."""
    unknown: tuple[tuple[str, str], ...] = ()
    """Fields of a newer release: name, and value as JSON. They are kept."""

    @property
    def eta_seconds(self) -> float:
        """Seconds left at this rate; negative when unknown."""
        if self.state.ended:
            return 0.0
        left = self.total - self.done
        return left / self.per_second if self.total and self.per_second > 0 else -1.0


def same(job: Job, wanted: Job) -> Job:
    """The job that occupies the lane, if it has the wanted arguments and has not failed. Otherwise raises JobUnderWay,
    whose message explains how to free the lane."""
    if job.arguments == wanted.arguments and job.state is not JobState.FAILED:
        return job
    if job.state.wants_a_runner:
        hint = f"wait for its end, or cancel it: baton jobs cancel {job.id}"
    else:
        hint = f"continue it: baton jobs resume {job.id}, or cancel it: baton jobs cancel {job.id}"
    raise JobUnderWay(f"{job.id} is {job.state.value}: {hint}; nothing was changed", job=job.id, state=job.state.value)


def check_rate(rate: float) -> None:
    """Raises InvalidField."""
    if rate != 0 and not 1 <= rate <= MAX_RATE:
        raise InvalidField("rate", rate, f"1 to {MAX_RATE:.0f} per second; 0 is as fast as the live traffic allows")


def check_actor(actor: str) -> None:
    """Raises InvalidField."""
    if not actor.strip() or len(actor) > MAX_ACTOR_CHARACTERS:
        raise InvalidField("actor", actor, f"name of the operator or program, 1 to {MAX_ACTOR_CHARACTERS} characters")


def pause(job: Job, actor: str) -> Job:
    """The paused job. The step in progress is still stored. Raises JobRefused, InvalidField; so do all transitions."""
    check_actor(actor)
    _check(job, "pause")
    return replace(job, state=JobState.PAUSED, note=f"paused by {actor}", waits="", per_second=0.0)


def resume(job: Job, actor: str) -> Job:
    check_actor(actor)
    _check(job, "resume")
    return replace(job, state=JobState.QUEUED, note=f"resumed by {actor}", waits="", claim="", ended_seconds=0.0)


def cancel(job: Job, actor: str, now: float) -> Job:
    check_actor(actor)
    _check(job, "cancel")
    return _ended(job, JobState.CANCELLED, f"cancelled by {actor}", now)


def tune(job: Job, rate: float) -> Job:
    check_rate(rate)
    _check(job, "tune")
    return replace(job, rate=rate)


def claim(job: Job, token: str, runner: str) -> Job:
    """The job, claimed by the run with this token. Reports of former runs are refused from now on."""
    _check(job, "claim")
    return replace(job, state=JobState.RUNNING, claim=token, runner=runner, per_second=0.0, waits="")


def finish(job: Job, note: str, now: float) -> Job:
    _check(job, "finish")
    return replace(_ended(job, JobState.FINISHED, note, now), total=job.done)


def fail(job: Job, note: str, now: float) -> Job:
    _check(job, "fail")
    return _ended(job, JobState.FAILED, note, now)


def _ended(job: Job, state: JobState, note: str, now: float) -> Job:
    return replace(job, state=state, note=note, waits="", claim="", per_second=0.0, ended_seconds=now)


def _check(job: Job, action: str) -> None:
    allowed = FROM[action]
    if job.state not in allowed:
        names = " or ".join(state.value for state in JobState if state in allowed)
        raise JobRefused(
            f"{job.id} is {job.state.value}, but {action} needs a job that is {names}; nothing was changed",
            job=job.id,
            state=job.state.value,
        )

"""Jobs: what is written down of long work, and how it may change. Pure.

A job is one row of the control store. Operators and the router that runs it change that row alike, each by compare and
set on its `version`; so an order is never lost under a report of progress, nor the other way round. Whoever lost the
race reads the row again, and does what it says now. The rules are in one table:

    action   from                       to
    claim    QUEUED, RUNNING            RUNNING     by the router that holds the job's lease
    pause    QUEUED, RUNNING            PAUSED
    resume   PAUSED, FAILED             QUEUED      where it stopped
    cancel   all but those that ended   CANCELLED
    tune     all but those that ended   as it was
    finish   RUNNING, PAUSED            FINISHED    by the router that has the claim: a step that was under way when
    fail     RUNNING, PAUSED            FAILED      its job was paused may have been the last one

FAILED has not ended: it waits for a person, who resumes it or cancels it. FINISHED and CANCELLED are for good.
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
    """The job does not allow this now."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_STATE"


class JobUnderWay(BatonError):
    """Such a job is under way; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "JOB_UNDER_WAY"


class JobState(Enum):
    QUEUED = "QUEUED"
    """Asked for; no router has begun it, or none goes on with it yet."""
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
"""The table above."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is written down."""

    kind: str
    """What is done: "backfill"."""
    lane: str
    """Of the jobs in one lane one at a time may be under way: "backfill to B"."""
    actor: str
    """Who asked for it."""
    reason: str = field(default="", kw_only=True)
    """Why; "" if the actor gave no reason."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.0
    """Units per second at most; 0: as fast as the live traffic allows."""
    id: str = ""
    """Given by the store: "backfill-7"."""
    version: int = 0
    """Grows with each change; what compare and set compares."""
    state: JobState = JobState.QUEUED
    claim: str = ""
    """Of the run that may report progress; another one with each run."""
    runner: str = ""
    """The router that runs it, or ran it last."""
    done: int = 0
    total: int = 0
    """Units in all, as far as is known; 0: not known."""
    per_second: float = 0.0
    """Units over the last seconds."""
    waits: str = ""
    """Why it stands still, or is slower than it may be, in words; "" when it runs as fast as it may."""
    note: str = ""
    """What it does, or how it ended, in words."""
    checkpoint: bytes = b""
    """Where to go on; its meaning is the kind's. Empty: at the beginning."""
    report: str = ""
    """What was found: JSON of the kind's own making; "" before there is anything."""
    created_seconds: float = 0.0
    """UNIX time."""
    ended_seconds: float = 0.0
    """UNIX time of its end, or of its failure; 0: it is under way."""

    @property
    def eta_seconds(self) -> float:
        """Seconds left at this rate; negative when unknown."""
        if self.state.ended:
            return 0.0
        left = self.total - self.done
        return left / self.per_second if self.total and self.per_second > 0 else -1.0


def same(job: Job, wanted: Job) -> Job:
    """The job that has the lane, if it does what is wanted; one that has failed does not. Raises JobUnderWay, which
    names how the operator frees the lane."""
    if job.arguments == wanted.arguments and job.state is not JobState.FAILED:
        return job
    if job.state.wants_a_runner:
        hint = f"wait for its end, or end it: baton jobs cancel {job.id}"
    else:
        hint = f"go on with it: baton jobs resume {job.id}, or end it: baton jobs cancel {job.id}"
    raise JobUnderWay(f"{job.id} is {job.state.value}: {hint}; nothing was changed", job=job.id, state=job.state.value)


def check_rate(rate: float) -> None:
    """Raises InvalidField."""
    if rate != 0 and not 1 <= rate <= MAX_RATE:
        raise InvalidField("rate", rate, f"1 to {MAX_RATE:.0f} per second; 0 is as fast as the live traffic allows")


def check_actor(actor: str) -> None:
    """Raises InvalidField."""
    if not actor.strip() or len(actor) > MAX_ACTOR_CHARACTERS:
        raise InvalidField("actor", actor, f"who does this, 1 to {MAX_ACTOR_CHARACTERS} characters")


def pause(job: Job, actor: str) -> Job:
    """The step that is under way is still written down. Raises JobRefused, InvalidField; as all of these do."""
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
    """The run with this token goes on from the checkpoint; a former run's reports are refused from now on."""
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
            f"{job.id} is {job.state.value}: {action} needs one that is {names}; nothing was changed",
            job=job.id,
            state=job.state.value,
        )

"""Notices to the tools that people already have: which are due, and their form. Pure.

A notice is due once: for each change of the setting that enters a phase or rolls back, for each job that ends or fails,
when a gate of the next step begins to fail, and when a store has more unresolved conflicts than before. A gate that
fails when its phase begins is no news: the canary begins at 0 %, and no bucket is at B.

`Sent` records the delivered notices. The journal and the jobs are the queue, so if a receiver is away or a router ends,
only changes before the last `MOST_ENTRIES` are lost.

The form is CloudEvents 1.0, structured JSON. `text` is an extension attribute with the notice in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from services.router.control.port import AUTOMATIC, JournalEntry
from services.router.core.gates import GateResult, Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.phase import Setting

CONTENT_TYPE = "application/cloudevents+json"
MOST_ENTRIES = 200
"""Changes of the setting that a look takes from the journal, the newest."""

PHASE, ROLLBACK, GATE, JOB, CONFLICT = (
    "baton.phase.changed",
    "baton.rolled.back",
    "baton.gate.failed",
    "baton.job.ended",
    "baton.conflict.found",
)
_LEFT = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Notice:
    id: str
    """The same at every router and in every attempt, so that a receiver recognises a notice that comes twice."""
    type: str
    subject: str
    seconds: float
    """UNIX time."""
    text: str
    data: Mapping[str, Any]

    def to_json(self, source: str) -> bytes:
        """`source`: the migrated service, such as "/baton/sandbox.v1.SandboxService"."""
        event = {
            "specversion": "1.0",
            "id": self.id,
            "source": source,
            "type": self.type,
            "subject": self.subject,
            "time": datetime.fromtimestamp(self.seconds, UTC).isoformat(timespec="milliseconds"),
            "datacontenttype": "application/json",
            "text": self.text,
            "data": self.data,
        }
        return json.dumps(event, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class State:
    """The migration at one moment."""

    setting: Setting
    entries: Sequence[JournalEntry]
    """The newest changes, newest first."""
    jobs: Sequence[Job]
    gates: Sequence[GateResult]
    """Gates of the next step."""
    conflicts: Mapping[str, int]
    """Unresolved conflicts by store, where they are known."""
    seconds: float
    """UNIX time."""


@dataclass(frozen=True, slots=True)
class Sent:
    generation: int
    """Generation of the newest change that was reported."""
    jobs: frozenset[str] = frozenset()
    """Jobs that have ended, each with its end."""
    failing: frozenset[str] = frozenset()
    """Gates of the next step that fail."""
    conflicts: Mapping[str, int] = field(default_factory=dict)
    number: int = 0
    """Number of the last notice about a gate or about conflicts; their ids contain it."""
    trouble: str = ""
    """Why the next notice is not delivered; "" if it is."""
    given_up: int = 0
    """Notices that the receiver has refused."""
    given_up_seconds: float = 0.0
    """UNIX time of the last one."""

    @classmethod
    def of(cls, state: State) -> Sent:
        """No notice about this state is due."""
        jobs = frozenset(_end_of(job) for job in state.jobs if job.state in _LEFT)
        # If the record is lost, the numbers go on above the former ones.
        return cls(state.setting.generation, jobs, _failing(state), dict(state.conflicts), int(state.seconds))

    @classmethod
    def from_json(cls, text: str) -> Sent | None:
        """None if another release wrote it."""
        try:
            found = json.loads(text)
            return cls(
                int(found["generation"]),
                frozenset(found["jobs"]),
                frozenset(found["failing"]),
                {store: int(number) for store, number in found["conflicts"].items()},
                int(found["number"]),
                str(found.get("trouble", "")),
                int(found.get("given_up", 0)),
                float(found.get("given_up_seconds", 0.0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "jobs": sorted(self.jobs), "failing": sorted(self.failing)})


def due(sent: Sent, state: State) -> Iterator[tuple[Notice | None, Sent]]:
    """Each notice that is due, oldest first, and the record once it is delivered. None: the record changes without a
    notice."""
    # A setting that was restored from a backup has an older generation.
    generation = min(sent.generation, state.setting.generation)
    for entry in reversed(state.entries):
        if entry.after.generation > generation:
            generation = entry.after.generation
            begins = _failing(state) if entry.before.phase is not entry.after.phase else frozenset()
            sent = replace(sent, generation=generation, failing=sent.failing | begins)
            yield _of_entry(entry), sent
    if generation != sent.generation:
        sent = replace(sent, generation=generation)
        yield None, sent
    yield from _of_work(sent, state)


def _of_work(sent: Sent, state: State) -> Iterator[tuple[Notice | None, Sent]]:
    """Each notice about jobs, gates and conflicts, as `due`; last the record without those that are over."""
    kept = frozenset(_end_of(job) for job in state.jobs if job.state in _LEFT)
    for job in sorted(state.jobs, key=lambda one: one.ended_seconds):
        if job.state in _LEFT and _end_of(job) not in sent.jobs:
            sent = replace(sent, jobs=sent.jobs | {_end_of(job)})
            yield _of_job(job), sent
    for gate in state.gates:
        if gate.verdict is Verdict.FAIL and gate.name not in sent.failing:
            sent = replace(sent, failing=sent.failing | {gate.name}, number=sent.number + 1)
            yield _of_gate(gate, state, sent.number), sent
    for store, number in state.conflicts.items():
        if number > sent.conflicts.get(store, 0):
            sent = replace(sent, conflicts={**sent.conflicts, store: number}, number=sent.number + 1)
            yield _of_conflicts(store, number, state, sent.number), sent
    # A gate without evidence, such as after a restart, has not recovered.
    not_passing = frozenset(gate.name for gate in state.gates if gate.verdict is not Verdict.PASS)
    left = replace(
        sent,
        jobs=sent.jobs & kept,
        failing=sent.failing & not_passing,
        conflicts={**sent.conflicts, **state.conflicts},
    )
    if left != sent:
        yield None, left


def _failing(state: State) -> frozenset[str]:
    return frozenset(gate.name for gate in state.gates if gate.verdict is Verdict.FAIL)


def _end_of(job: Job) -> str:
    # A job that failed may be continued, and fail again.
    return f"{job.id} {job.state.value} {job.ended_seconds:.3f}"


def _of_entry(entry: JournalEntry) -> Notice | None:
    before, after = entry.before, entry.after
    back = entry.action in ("rollback", AUTOMATIC)
    if not back and before.phase is after.phase and before.hold is after.hold:
        return None
    reason = f": {entry.reason}" if entry.reason else ""
    if back:
        how = "Baton rolled back by itself" if entry.action == AUTOMATIC else f"{entry.actor} rolled back"
        text = f"{how} from {before.phase.value} to {after.phase.value}{reason}"
    elif before.phase is after.phase:
        text = f"{entry.actor} {'set' if after.hold else 'lifted'} the hold at A{reason}"
    else:
        overridden = ", gates overridden" if entry.overridden else ""
        text = f"{entry.actor} moved from {before.phase.value} to {after.phase.value}{overridden}{reason}"
    data = {
        "generation": after.generation,
        "action": entry.action,
        "actor": entry.actor,
        "reason": entry.reason,
        "overridden": entry.overridden,
        "before": {"phase": before.phase.value, "hold": before.hold},
        "after": {"phase": after.phase.value, "hold": after.hold},
    }
    kind = ROLLBACK if back else PHASE
    return Notice(f"change-{after.generation}", kind, f"generation/{after.generation}", entry.time_seconds, text, data)


def _of_job(job: Job) -> Notice:
    note = f": {job.note}" if job.note else ""
    data = {
        "job": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "actor": job.actor,
        "note": job.note,
        "done": job.done,
        "total": job.total,
    }
    id_ = f"job-{job.id}-{job.state.value}-{round(job.ended_seconds * 1000)}"
    return Notice(id_, JOB, f"jobs/{job.id}", job.ended_seconds, f"{job.id} is {job.state.value}{note}", data)


def _of_gate(gate: GateResult, state: State, number: int) -> Notice:
    data = {"gate": gate.name, "evidence": gate.evidence, "threshold": gate.threshold}
    id_ = f"gate-{gate.name}-{number}"
    text = f"gate {gate.name} blocks the next step: {gate.evidence}"
    return Notice(id_, GATE, f"gates/{gate.name}", state.seconds, text, data)


def _of_conflicts(store: str, conflicts: int, state: State, number: int) -> Notice:
    text = f"store {store} has {conflicts} unresolved conflict{'s' if conflicts > 1 else ''}: baton conflicts"
    id_ = f"conflicts-{store}-{number}"
    return Notice(id_, CONFLICT, f"stores/{store}", state.seconds, text, {"store": store, "conflicts": conflicts})

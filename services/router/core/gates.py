"""What must be true before a phase is entered. A gate is data: its sentence, and a verdict on evidence.

A gate without evidence is INCONCLUSIVE, and that is not a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now. None: not known."""

    backfill_finished_seconds_ago: float | None = None
    lag_seconds: float | None = None
    """The worse one of the two feeds."""
    lag_events: int | None = None
    parked: int | None = None
    """Events that could not be applied, at both stores."""
    canary_permille: int = 0
    buckets_at_b: int | None = None
    """Buckets of which A owns neither a row nor the absence."""
    buckets: int = 1024
    a_owned_records: int | None = None
    a_owned_absences: int | None = None
    a_outbox_entries: int | None = None
    """Changes of A that are not in the log yet."""


@dataclass(frozen=True, slots=True)
class GateResult:
    name: str
    sentence: str
    verdict: Verdict
    evidence: str
    threshold: str


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    sentence: str
    threshold: str
    judge: Callable[[Evidence], tuple[Verdict, str]]
    overridable: bool = True

    def result(self, evidence: Evidence) -> GateResult:
        verdict, seen = self.judge(evidence)
        return GateResult(self.name, self.sentence, verdict, seen, self.threshold)


MAX_LAG_SECONDS = 300.0


def _at_most(value: float | None, limit: float, what: str, unit: str) -> tuple[Verdict, str]:
    if value is None:
        return Verdict.INCONCLUSIVE, f"{what} is not known"
    return (Verdict.PASS if value <= limit else Verdict.FAIL), f"{what} is {value:g}{unit}"


def _backfill(evidence: Evidence) -> tuple[Verdict, str]:
    ago = evidence.backfill_finished_seconds_ago
    if ago is None:
        return Verdict.FAIL, "no backfill has finished: run baton backfill"
    return Verdict.PASS, f"a backfill finished {ago:.0f} s ago; the feed has carried every change since"


def _canary(evidence: Evidence) -> tuple[Verdict, str]:
    percent = evidence.canary_permille / 10
    return (Verdict.PASS if percent == 100 else Verdict.FAIL), f"the canary is at {percent:g} %"


def _buckets(evidence: Evidence) -> tuple[Verdict, str]:
    if evidence.buckets_at_b is None:
        return Verdict.INCONCLUSIVE, "a store is out of reach"
    done = evidence.buckets_at_b == evidence.buckets
    return (Verdict.PASS if done else Verdict.FAIL), f"{evidence.buckets_at_b} of {evidence.buckets} buckets are at B"


def _a_owns_nothing(evidence: Evidence) -> tuple[Verdict, str]:
    records, absences, entries = evidence.a_owned_records, evidence.a_owned_absences, evidence.a_outbox_entries
    if records is None or absences is None or entries is None:
        return Verdict.INCONCLUSIVE, "A is out of reach"
    # A record that A has just given up may be nowhere but in its outbox.
    verdict = Verdict.PASS if records == absences == entries == 0 else Verdict.FAIL
    seen = f"A owns {records} records and the absence of {absences} buckets"
    return verdict, f"{seen}, and {entries} of its changes are not in the log"


def _unmeasured(evidence: Evidence) -> tuple[Verdict, str]:
    return Verdict.INCONCLUSIVE, "this is not measured yet"


_GATES: Sequence[Gate] = (
    Gate("audit", "The old data was audited and is clean.", "no dirty record", _unmeasured),
    Gate("backfill", "Every record of A was copied to B.", "a finished backfill", _backfill),
    Gate(
        "lag",
        "Both stores are close behind each other.",
        f"at most {MAX_LAG_SECONDS:g} s",
        lambda evidence: _at_most(evidence.lag_seconds, MAX_LAG_SECONDS, "the worse lag", " s"),
    ),
    Gate(
        "parked",
        "Every event could be applied.",
        "0 parked events",
        lambda evidence: _at_most(evidence.parked, 0, "the number of parked events", ""),
    ),
    Gate("shadow-consistent", "Shadow reads agree.", "mismatches < 0.01 %", _unmeasured),
    Gate("error-rate", "B's calls do not fail.", "errors < 0.5 %", _unmeasured),
    Gate("canary-complete", "The canary has reached every bucket.", "100 %", _canary),
    Gate("buckets-done", "Every bucket is handed over.", "all buckets at B", _buckets),
    Gate("latency-parity", "B is as fast as A.", "P99 of B <= P99 of A", _unmeasured),
    Gate("rehearsal", "Going back was rehearsed on live buckets.", "a fresh rehearsal", _unmeasured),
    Gate(
        "a-owns-nothing",
        "A owns no record, may create none, and holds back no change.",
        "0 records, 0 buckets, 0 changes",
        _a_owns_nothing,
        overridable=False,
    ),
    Gate("golden-metrics", "Errors, lag, latency and locks are within their limits.", "all of them", _unmeasured),
    Gate("no-active-clients", "No client calls A directly any more.", "none for 4 weeks", _unmeasured),
)

GATES: Mapping[str, Gate] = {gate.name: gate for gate in _GATES}


def judge(names: Sequence[str], evidence: Evidence) -> tuple[GateResult, ...]:
    return tuple(GATES[name].result(evidence) for name in names)


def worst(results: Sequence[GateResult]) -> Verdict:
    """FAIL before INCONCLUSIVE before PASS."""
    verdicts = {result.verdict for result in results}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def not_overridable(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """Those that do not pass and that no reason can override."""
    return tuple(r for r in results if r.verdict is not Verdict.PASS and not GATES[r.name].overridable)

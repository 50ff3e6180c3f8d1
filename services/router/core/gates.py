"""What must be true before a phase is entered. A gate is data: its sentence, its threshold, and a verdict on evidence.

A gate without evidence is INCONCLUSIVE, and that is not a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from libs.text import plain
from services.router.core import evidence as on
from services.router.core import last_step
from services.router.core.consistency import consistent
from services.router.core.evidence import Evidence, Judgement, Limits, Verdict

__all__ = ["GATES", "Evidence", "Gate", "GateResult", "Limits", "Verdict", "judge", "not_overridable", "worst"]


@dataclass(frozen=True, slots=True)
class GateResult:
    name: str
    sentence: str
    verdict: Verdict
    evidence: str
    threshold: str
    runbook: str = ""
    samples: int = 0
    """What the verdict is made from; 0 where nothing is counted."""
    least_samples: int = 0
    seconds_left: float | None = 0.0
    """Until there are enough samples, at the present rate; None: not known, or never at that rate."""


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    sentence: str
    threshold: Callable[[Limits], str]
    judge: Callable[[Evidence, Limits], Judgement]
    runbook: str
    """What to do when it does not pass."""
    overridable: bool = True

    def result(self, evidence: Evidence, limits: Limits) -> GateResult:
        found = self.judge(evidence, limits)
        return GateResult(
            name=self.name,
            sentence=self.sentence,
            verdict=found.verdict,
            evidence=found.evidence,
            threshold=self.threshold(limits),
            runbook=self.runbook,
            samples=found.samples,
            least_samples=found.least_samples,
        )


_GATES: Sequence[Gate] = (
    Gate(
        "audit",
        "The old data was audited, and its dirt is gone or accepted.",
        lambda limits: f"no kind of dirt that is not accepted, at most {on.time_shown(limits.audit_seconds)} ago",
        on.audit,
        "baton audit: clean the records up through A, or say --accept KIND for what may move as it is",
    ),
    Gate(
        "backfill",
        "Every record of A was copied to B.",
        lambda limits: "a finished backfill",
        on.backfill,
        "baton backfill",
    ),
    Gate(
        "lag",
        "Both stores are close behind each other.",
        lambda limits: f"at most {plain(limits.lag_seconds)} s",
        on.lag,
        "baton status: the store whose lag grows; then its feed's trouble, the log, and baton doctor",
    ),
    Gate(
        "parked",
        "Every event could be applied.",
        lambda limits: "0 parked events",
        on.parked,
        "baton events parked shows each with its reason; baton events retry or drop; baton doctor: refused by the log",
    ),
    Gate(
        "shadow-consistent",
        "Shadow reads agree, and so do the stores' records.",
        lambda limits: (
            f"disagreeing < {on.percent(limits.mismatch_rate)}, alert > {on.percent(limits.mismatch_alert_rate)},"
            f" records compared at most {on.time_shown(limits.compared_seconds)} ago"
        ),
        consistent,
        "baton shadow set PERCENT compares more reads, baton shadow shows what differs; baton reconcile for the stores",
    ),
    Gate(
        "error-rate",
        "B's calls do not fail.",
        lambda limits: f"server faults < {on.percent(limits.error_rate)}",
        on.error_rate,
        "baton status: calls and faults of B; then B's log. Too few calls: a larger canary",
    ),
    Gate(
        "canary-complete",
        "The canary has reached every bucket.",
        lambda limits: "100 %",
        on.canary,
        "baton canary set 100",
    ),
    Gate(
        "buckets-done",
        "Every bucket is handed over.",
        lambda limits: "all buckets at B",
        on.buckets,
        "baton status: the handover's note; it goes on by itself as long as both stores serve",
    ),
    Gate(
        "latency-parity",
        "B is as fast as A.",
        lambda limits: (
            f"P99 of B <= P99 of A (within {on.percent(limits.latency_margin)}), by bounds that hold with 95 %"
        ),
        on.latency_parity,
        "give both stores traffic of one kind within the hour (a canary of 50 %); slower at B: look at its database",
    ),
    Gate(
        "rehearsal",
        "Going back was rehearsed on live buckets.",
        lambda limits: f"without trouble, at most {on.time_shown(limits.rehearsal_seconds)} ago",
        on.rehearsal,
        "baton rehearse --buckets 4",
    ),
    Gate(
        "ledger",
        "What clients were told is in the stores.",
        lambda limits: f"0 acknowledged writes lost, of at least {limits.ledger_writes}",
        on.ledger,
        "baton ledger names each lost write; too few: wait for more writes",
    ),
    Gate(
        "a-owns-nothing",
        "A owns no record, may create none, and holds back no change.",
        lambda limits: "0 records, 0 buckets, 0 changes",
        on.a_owns_nothing,
        "baton status: wait for the handover and for A's outbox",
        overridable=False,
    ),
    Gate(
        "golden-metrics",
        "Errors, locks, lag and latency are within their limits.",
        lambda limits: (
            f"server faults <= {on.percent(limits.golden_error_rate)}, locks <= {plain(1000 * limits.lock_seconds)} ms,"
            f" lag <= {plain(limits.lag_seconds)} s, writes < {plain(1000 * limits.write_delta_seconds)} ms above A's"
        ),
        on.golden_metrics,
        "baton status: the part that does not pass; what is not measured must be judged by a person",
    ),
    Gate(
        "no-active-clients",
        "No client calls A directly any more.",
        lambda limits: f"none for {on.time_shown(limits.client_seconds)}",
        last_step.no_active_clients,
        "baton status lists them: give each one the router's address; what called before A was watched is not known",
        overridable=False,
    ),
    Gate(
        "nothing-under-way",
        "No job, move, recovery or conflict is open, and both feeds run.",
        lambda limits: f"none, lag at most {last_step.SETTLED_LAG_SECONDS:g} s",
        last_step.nothing_under_way,
        "baton jobs, baton status, baton conflicts: wait for each or end it",
        overridable=False,
    ),
)

GATES: Mapping[str, Gate] = {gate.name: gate for gate in _GATES}

_DEFAULT = Limits()


def judge(names: Sequence[str], evidence: Evidence, limits: Limits = _DEFAULT) -> tuple[GateResult, ...]:
    return tuple(GATES[name].result(evidence, limits) for name in names)


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

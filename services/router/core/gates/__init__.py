"""What must be true before a phase is entered. A gate is data: its sentence, its threshold, and a verdict on evidence.

A gate without evidence is INCONCLUSIVE, and that is not a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.router.core.evidence import Evidence, Limits
from services.router.core.gates import data, service, steps
from services.router.core.gates.gate import Gate, GateResult, Verdict

__all__ = ["GATES", "Evidence", "Gate", "GateResult", "Limits", "Verdict", "judge", "not_overridable", "worst"]

GATES: Mapping[str, Gate] = {gate.name: gate for gate in (*data.GATES, *service.GATES, *steps.GATES)}

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

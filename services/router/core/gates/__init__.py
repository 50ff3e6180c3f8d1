"""The gates: conditions that must hold before the migration enters a phase. Pure.

A gate turns evidence into a verdict. Without evidence the verdict is INCONCLUSIVE, and INCONCLUSIVE does not pass.
A few calls are not evidence either: only 3 / p calls without a fault show, with 95 % confidence, that the share of
faults is at most p (the rule of three). The default numbers of samples follow from it.

How to add a gate:

1. In the file of its theme (`data`, `service`, `steps`, `ending`), declare each threshold once:
   `DISK = percent("gate_disk_percent", 80, "Percent of B's disk that may be in use.")`.
   This alone makes the setting BATON_ROUTER_GATE_DISK_PERCENT and the limit that `baton gates` lists and sets.
2. Below it, write the verdict: a function of `Evidence` and `Limits` that returns a `Finding` and reads `limits[DISK]`.
3. In that file's `GATES`, declare the gate: its name, sentence, requirement, thresholds, page, runbook and alerts. The
   page is the runbook docs/runbooks/PAGE.md; name the gate in the line below its title. An alert reads a metric: a new
   metric is a row of `libs/telemetry/table.py` and a reader in `core/readings.py`. A new alert is named in
   `core/runbooks.py`.
4. In `core/phase.py`, name the gate in each phase that it guards.
5. `make alerts docs` writes deploy/alerts.yaml, the index of the runbooks, docs/configuration.md, docs/metrics.md and
   docs/phases.md.
6. In tests/unit/test_gates.py, add a case for each verdict. A gate with an alert gets a case in test_alerts.py, whose
   evidence `GOOD` must pass it. `pytest tests/transcripts --rewrite` adds the gate to the stories. Break the verdict
   once in tests/mutations/gates.toml.
7. If a run of `baton demo` cannot pass the gate, because it needs many samples or fails on a busy machine, set another
   threshold in `LIMITS` of services/router/cli/demo/script.py or name the gate in `MARKED_BY_THE_RUN`. Otherwise the
   demo waits a minute for it and then overrides it, and tests/acceptance/test_demo.py fails.

The tests of these steps: `pytest --no-servers tests/unit/test_gates.py tests/unit/test_alerts.py
tests/unit/test_runbooks.py tests/unit/test_docs.py tests/transcripts`, then `make mutants MUTANTS=gates`.

Evidence that does not exist yet is a new field of `Evidence`, None while it is unknown. A router fills it in
`flows/steering/observe.py`. `Evidence.latencies` covers up to the last hour, `b_calls` the last minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from services.router.core.evidence import Evidence
from services.router.core.gates import data, ending, service, steps, webhook
from services.router.core.gates.gate import Gate, GateResult, Verdict
from services.router.core.thresholds import Limits, Threshold

__all__ = ["GATES", "Evidence", "Gate", "GateResult", "Limits", "Verdict", "check", "not_overridable", "worst"]

_ALL = (*data.GATES, *service.GATES, *steps.GATES, *ending.GATES, *webhook.GATES)
GATES: Mapping[str, Gate] = {gate.name: gate for gate in _ALL}

_DEFAULT = Limits()


def check(names: Sequence[str], evidence: Evidence, limits: Limits = _DEFAULT) -> tuple[GateResult, ...]:
    return tuple(GATES[name].result(evidence, limits) for name in names)


def worst(results: Sequence[GateResult]) -> Verdict:
    """FAIL before INCONCLUSIVE before PASS."""
    verdicts = {result.verdict for result in results}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def not_overridable(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """Results that do not pass and that no reason can override."""
    return tuple(r for r in results if r.verdict is not Verdict.PASS and not GATES[r.name].overridable)


def warnings(evidence: Evidence, limits: Limits) -> list[str]:
    """Warnings of all gates that apply to this evidence."""
    found = (warning(evidence, limits) for gate in GATES.values() for warning in gate.warnings)
    return [one for one in found if one]


def thresholds() -> Iterable[Threshold[float]]:
    """Every threshold of a gate, once, in the order of gates."""
    return {threshold.name: threshold for gate in GATES.values() for threshold in gate.thresholds}.values()

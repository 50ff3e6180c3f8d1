"""The parts of a gate, and the parts of a verdict. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from string import Template
from typing import Any, Literal, NamedTuple

from libs.text import plain
from services.router.core.evidence import Evidence
from services.router.core.thresholds import Limits, Threshold

AHEAD_SECONDS = 5.0
"""Evidence may be dated this far ahead of the router's clock, because clocks of routers differ a little."""


class Verdict(Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


class Finding(NamedTuple):
    """A verdict and the evidence for it, in words."""

    verdict: Verdict
    evidence: str
    samples: int = 0
    least_samples: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule for Prometheus (`deploy/alerts.yaml`)."""

    name: str
    severity: Literal["page", "ticket"]
    when: str
    """PromQL. `$gate_lag_seconds` stands for the default of that threshold, in seconds or as a share of 1."""
    summary: str
    """May use Prometheus's {{ $value }} and {{ $labels.… }}."""
    runbook: str
    lasting: str = ""
    """Time for which `when` must hold, such as 1m; empty: none."""

    def rule(self, thresholds: tuple[Threshold[float], ...]) -> dict[str, Any]:
        """The entry of Prometheus's rule file."""
        limits = Limits()
        numbers = {threshold.name: f"{Decimal(repr(limits[threshold])).normalize():f}" for threshold in thresholds}
        return {
            "alert": self.name,
            "expr": Template(self.when).substitute(numbers),
            **({"for": self.lasting} if self.lasting else {}),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": self.runbook},
        }


@dataclass(frozen=True, slots=True)
class GateResult:
    name: str
    sentence: str
    verdict: Verdict
    evidence: str
    threshold: str
    runbook: str = ""
    samples: int = 0
    """Number of samples behind the verdict; 0 if the gate counts none."""
    least_samples: int = 0
    seconds_left: float | None = 0.0
    """Time until there are enough samples, at the present rate. None: unknown, or never at that rate."""


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    sentence: str
    """The condition, as one sentence."""
    requires: str
    """The condition with its numbers. `$gate_lag_seconds` stands for the value in force, with its unit."""
    verdict: Callable[[Evidence, Limits], Finding]
    page: str
    """The runbook docs/runbooks/PAGE.md (see `core.runbooks`)."""
    runbook: str
    """Remedy for the operator if the gate does not pass."""
    thresholds: tuple[Threshold[float], ...] = ()
    alerts: tuple[Alert, ...] = ()
    warnings: tuple[Callable[[Evidence, Limits], str], ...] = ()
    """Warnings in the router's status. Each returns a sentence; "" if it does not apply."""
    overridable: bool = True
    """An operator may enter the phase although the gate does not pass, with a reason."""

    def result(self, evidence: Evidence, limits: Limits) -> GateResult:
        found = self.verdict(evidence, limits)
        return GateResult(
            name=self.name,
            sentence=self.sentence,
            verdict=found.verdict,
            evidence=found.evidence,
            threshold=Template(self.requires).substitute(limits.shown(self.thresholds)),
            runbook=self.runbook,
            samples=found.samples,
            least_samples=found.least_samples,
        )


def all_of(parts: Mapping[str, Finding], counted: Finding) -> Finding:
    """The worst verdict of the parts, with the samples of `counted`."""
    verdict = next((v for v in (FAIL, INCONCLUSIVE) if any(part.verdict is v for part in parts.values())), PASS)
    shown = "; ".join(f"{name} {part.verdict.value}: {part.evidence}" for name, part in parts.items())
    return Finding(verdict, shown, counted.samples, counted.least_samples)


def by_age(ago: float, most: float, shown: str, old: Verdict = FAIL) -> Finding:
    """PASS until the evidence is older than `most`, then `old`.

    Evidence dated in the future was written by a wrong clock. Its age is unknown, and it must not stay fresh until that
    date.
    """
    if ago < -AHEAD_SECONDS:
        return Finding(INCONCLUSIVE, f"{shown}; its date is {time_shown(-ago)} ahead of this router's clock")
    return Finding(PASS if ago <= most else old, shown)


def at_most(value: float | None, limit: float, noun: str, unit: str) -> Finding:
    if value is None:
        return Finding(INCONCLUSIVE, f"{noun} is unknown")
    return Finding(PASS if value <= limit else FAIL, f"{noun} is {plain(value, decimals=3)}{unit}")


def by_share(bad: int, samples: int, limit: float, least: int, noun: str, *, below: bool) -> Finding:
    """Compares the share `bad / samples` with the limit. `below`: a share equal to the limit fails too.

    More bad samples than `least` samples may have are a FAIL, however few samples there are.
    """
    shown = f"{bad} of {samples} {noun} ({percent_shown(bad / samples if samples else 0.0)})"
    # Rounded, because products such as 0.0001 * 30000 are not exact.
    excess = round(bad - limit * max(samples, least), 6)
    if excess > 0 or (below and bad and excess == 0):
        return Finding(FAIL, shown, samples, least)
    if samples < least:
        return Finding(INCONCLUSIVE, f"{shown}; {least} are needed", samples, least)
    return Finding(PASS, shown, samples, least)


def time_shown(seconds: float) -> str:
    """0 s for a negative time."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def percent_shown(share: float) -> str:
    return f"{plain(100 * share)} %"

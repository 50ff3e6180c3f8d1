"""A gate, and the parts that verdicts are made from. Pure.

Without evidence there is no verdict, and nor are a few calls evidence: that a share is at most p is shown, with 95 %
confidence, by 3 / p calls without a single fault (the rule of three); the least numbers of samples are made so. More
faults than so many calls may have are a FAIL, however few calls there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from libs.text import plain
from services.router.core.evidence import Evidence, Limits

AHEAD_SECONDS = 5.0
"""By how much evidence may be dated ahead of this router's clock, since routers' clocks differ a little."""


class Verdict(Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


class Judgement(NamedTuple):
    verdict: Verdict
    evidence: str
    samples: int = 0
    least_samples: int = 0


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


def all_of(parts: Mapping[str, Judgement], counted: Judgement) -> Judgement:
    """The worst verdict; samples are those of one part."""
    verdict = next((v for v in (FAIL, INCONCLUSIVE) if any(part.verdict is v for part in parts.values())), PASS)
    shown = "; ".join(f"{name} {part.verdict.value}: {part.evidence}" for name, part in parts.items())
    return Judgement(verdict, shown, counted.samples, counted.least_samples)


def by_age(ago: float, most: float, shown: str, old: Verdict = FAIL) -> Judgement:
    """Evidence that is good until it is too old. If it is dated in the future, a clock was wrong: then its age is
    unknown, and it must not stay fresh until that date."""
    if ago < -AHEAD_SECONDS:
        return Judgement(INCONCLUSIVE, f"{shown}; its date is {time_shown(-ago)} ahead of this router's clock")
    return Judgement(PASS if ago <= most else old, shown)


def time_shown(seconds: float) -> str:
    """0 s for a negative time."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def percent(share: float) -> str:
    return f"{plain(100 * share)} %"


def at_most(value: float | None, limit: float, what: str, unit: str) -> Judgement:
    if value is None:
        return Judgement(INCONCLUSIVE, f"{what} is not known")
    return Judgement(PASS if value <= limit else FAIL, f"{what} is {plain(value, decimals=3)}{unit}")


def share_below(bad: int, samples: int, limit: float, least: int, what: str, *, below: bool) -> Judgement:
    """`below`: the share must be below the limit; else it may be as much."""
    shown = f"{bad} of {samples} {what} ({percent(bad / samples if samples else 0.0)})"
    # Against the rounding of products such as 0.0001 * 30000.
    excess = round(bad - limit * max(samples, least), 6)
    if excess > 0 or (below and bad and excess == 0):
        return Judgement(FAIL, shown, samples, least)
    if samples < least:
        return Judgement(INCONCLUSIVE, f"{shown}; {least} are needed to tell", samples, least)
    return Judgement(PASS, shown, samples, least)

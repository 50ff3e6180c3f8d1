"""The rate of a job under live traffic. Pure: the caller looks twice a second.

Increase and decrease are multiplicative, because additive increase recovers too slowly from a long pause. A look at
which live traffic suffers halves the rate. Any other look adds a quarter, until the job has its requested rate or does
not use its rate; then the throttle is off. A job keeps LEAST_RATE, which shows that it runs and does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from libs.text import plain

LEAST_RATE = 100.0
"""Units per second that a throttled job keeps."""
DOWN = 0.5
UP = 1.25
UNUSED = 4.0
"""The throttle ends when the allowed rate is this many times the measured one. The measured rate lags: it covers the
last five seconds, in which the allowed rate grows ninefold. A smaller factor would end the throttle too early."""
LEAST_CALLS = 20
"""Live calls needed for a rate of faults."""


@dataclass(frozen=True, slots=True)
class ThrottleLimits:
    """Limits above which live traffic suffers."""

    lag_seconds: float = 10.0
    """Lag of the slower feed."""
    latency_seconds: float = 0.5
    """P99 of a call to a store."""
    error_rate: float = 0.01
    """Share of calls that failed by the store's fault."""


class Load(NamedTuple):
    """State of live traffic. None: unknown, which does not throttle."""

    lag_seconds: float | None = None
    latency_seconds: float | None = None
    calls: int = 0
    """Calls of the last seconds."""
    faults: int = 0


class Pace(NamedTuple):
    """The allowed rate of a job."""

    rate: float
    """Units per second; 0: no bound."""
    reason: str = ""
    """Why it is below the requested rate; empty if it is not."""


def suffering(load: Load, limits: ThrottleLimits) -> str:
    """The limit that live traffic exceeds, in words, or ""."""
    if load.lag_seconds is not None and load.lag_seconds > limits.lag_seconds:
        return f"lag {load.lag_seconds:.1f} s is above {plain(limits.lag_seconds)} s"
    if load.calls < LEAST_CALLS:
        return ""
    if load.faults > limits.error_rate * load.calls:
        return f"{load.faults} of {load.calls} live calls failed, which is above {plain(100 * limits.error_rate)} %"
    if load.latency_seconds is not None and load.latency_seconds > limits.latency_seconds:
        limit = plain(1000 * limits.latency_seconds)
        return f"P99 of live calls is {1000 * load.latency_seconds:.0f} ms, above {limit} ms"
    return ""


class Throttle:
    """Throttle of one run of one job."""

    def __init__(self, limits: ThrottleLimits) -> None:
        self._limits = limits
        self._allowed = 0.0
        """0: no bound."""

    def __repr__(self) -> str:
        return f"<Throttle {plain(self._allowed)}/s>"

    def look(self, load: Load, wanted: float, measured: float) -> Pace:
        """`wanted`: the operator's rate, 0 for none; `measured`: the job's present rate."""
        reason = suffering(load, self._limits)
        if reason:
            now = self._allowed or measured
            self._allowed = max(LEAST_RATE, DOWN * (min(now, wanted) if wanted else now))
        elif self._allowed:
            reason = "live traffic has suffered; it gets faster again"
            self._allowed *= UP
            if self._allowed > UNUSED * max(measured, LEAST_RATE):
                self._allowed = 0.0
        if not self._allowed or 0 < wanted <= self._allowed:
            return Pace(wanted)
        return Pace(self._allowed, f"slowed down to {self._allowed:.0f}/s: {reason}")

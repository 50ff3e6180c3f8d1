"""How fast a job may go while live traffic goes on. Pure: the caller looks twice a second.

Additive increase would find the way back too slowly after a long pause, so both ways multiply: each look at which live
traffic suffers halves the rate, each other one gives a quarter more, until the job gets what was asked for, or does not
use what it gets; then the throttle is off. It never stands still: a job at LEAST_RATE shows that it lives, and does no
harm.
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
"""A job that may do so many times what it does is not held back any more. Its rate is that of the last five seconds, in
which what it may do grows ninefold; so less than this would set it free too early."""
LEAST_CALLS = 20
"""Fewer live calls than so many say nothing."""


@dataclass(frozen=True, slots=True)
class ThrottleLimits:
    """Above which live traffic suffers."""

    lag_seconds: float = 10.0
    """Of the worse feed."""
    latency_seconds: float = 0.5
    """P99 of a call to a store."""
    error_rate: float = 0.01
    """Share of calls that failed by the store's fault."""


class Load(NamedTuple):
    """What live traffic feels now. None: not known, which slows nothing down."""

    lag_seconds: float | None = None
    latency_seconds: float | None = None
    calls: int = 0
    """Of the last seconds."""
    faults: int = 0


class Pace(NamedTuple):
    """What a job may do."""

    rate: float
    """Units per second; 0: no bound."""
    reason: str = ""
    """Why that is less than was asked for, in words; "" when it is not."""


def suffering(load: Load, limits: ThrottleLimits) -> str:
    """What live traffic suffers from, in words; "" when from nothing."""
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
    """Of one run of one job."""

    def __init__(self, limits: ThrottleLimits) -> None:
        self._limits = limits
        self._allowed = 0.0
        """0: no bound."""

    def __repr__(self) -> str:
        return f"<Throttle {plain(self._allowed)}/s>"

    def look(self, load: Load, wanted: float, measured: float) -> Pace:
        """`wanted`: the operator's rate, 0 for none; `measured`: what the job does now."""
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

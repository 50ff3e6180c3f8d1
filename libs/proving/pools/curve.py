"""The curve of a sweep of pool sizes, and its knee. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 0.95
"""Share of the highest throughput that is enough: a larger pool adds too little for its connections."""
USUAL_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one size."""

    seconds: float
    milliseconds: Sequence[float]
    """Latency of each call, including its wait for a connection."""
    busy: float
    """Load of one core by the measuring process, as a share."""


@dataclass(frozen=True, slots=True)
class Point:
    """All turns of one size together."""

    size: int
    calls_per_second: float
    """Median of its turns."""
    p50_ms: float
    p99_ms: float
    busy: float

    @classmethod
    def of(cls, size: int, turns: Sequence[Turn]) -> Point:
        """Raises ValueError if no call was finished."""
        found = sorted(value for turn in turns for value in turn.milliseconds)
        if not found:
            raise ValueError(f"no call was finished with {size} connections: measure for longer")
        return cls(
            size,
            statistics.median(len(turn.milliseconds) / turn.seconds for turn in turns),
            _percentile(found, 0.5),
            _percentile(found, 0.99),
            statistics.median(turn.busy for turn in turns),
        )


def knee(points: Sequence[Point]) -> Point:
    """The smallest size that gives `ENOUGH` of the highest throughput."""
    best = max(point.calls_per_second for point in points)
    return min((point for point in points if point.calls_per_second >= ENOUGH * best), key=lambda point: point.size)


def sizes_up_to(most: int, rule: int | None) -> tuple[int, ...]:
    """Default sizes of a sweep: the usual sizes and the one of the rule, as far as connections are free."""
    sizes = {*USUAL_SIZES, *([rule] if rule is not None else [])}
    return tuple(sorted(size for size in sizes if size <= most))


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]

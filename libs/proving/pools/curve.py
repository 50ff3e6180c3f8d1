"""The curve that a sweep of pool sizes gives, and where it bends. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 0.95
"""Of the highest throughput: what a larger pool adds to that is not worth its connections."""
USUAL_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one size."""

    seconds: float
    milliseconds: Sequence[float]
    """Of each call, its wait for a connection included."""
    busy: float
    """How much of one core the measuring process used."""


@dataclass(frozen=True, slots=True)
class Point:
    """All turns of one size together."""

    size: int
    calls_per_second: float
    """The median of its turns."""
    p50_ms: float
    p99_ms: float
    busy: float

    @classmethod
    def of(cls, size: int, turns: Sequence[Turn]) -> Point:
        """Raises ValueError when no call was finished."""
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
    """What is swept when nobody says: the usual sizes and the one of the rule, as far as connections are free."""
    sizes = {*USUAL_SIZES, *([rule] if rule is not None else [])}
    return tuple(sorted(size for size in sizes if size <= most))


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]

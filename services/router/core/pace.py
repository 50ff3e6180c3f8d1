"""Time until a gate has enough samples, at the rate of the last minute. Time is an argument.

The samples of some gates expire, for example after ten minutes. So the rate is that of the last minute, not the average
since the start. A count that does not grow gives no time: at that rate there are never enough samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.router.core.gates import GateResult

WINDOW_SECONDS = 60.0
LEAST_SECONDS = 2.0
"""Between the first and the last look of a rate."""
_LOOKS = 120


@dataclass(slots=True)
class Pace:
    """Number of samples of each gate over time."""

    _seen: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def noted(self, results: Sequence[GateResult], now: float) -> tuple[GateResult, ...]:
        """Adds to each result the time until there are enough samples."""
        return tuple(replace(result, seconds_left=self._left(result, now)) for result in results)

    def _left(self, result: GateResult, now: float) -> float | None:
        missing = result.least_samples - result.samples
        seen = self._seen.setdefault(result.name, deque(maxlen=_LOOKS))
        if not seen or now - seen[-1][0] >= WINDOW_SECONDS / _LOOKS:
            seen.append((now, result.samples))
        while len(seen) > 1 and now - seen[0][0] > WINDOW_SECONDS:
            seen.popleft()
        if missing <= 0:
            return 0.0
        began, first = seen[0]
        gained = result.samples - first
        return missing * (now - began) / gained if gained > 0 and now - began >= LEAST_SECONDS else None

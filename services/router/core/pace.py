"""How long until a gate has seen enough, at the rate of the last minute. Time is an argument.

The samples of some gates expire (they are of the last ten minutes, for example), so the rate is of the last minute, not
the average since the start. A count that shrinks or stands still gives no time: at that rate there are never enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.router.core.gates import GateResult

WINDOW_SECONDS = 60.0
LEAST_SECONDS = 2.0
"""Between two looks that give a rate."""
_LOOKS = 120


@dataclass(slots=True)
class Pace:
    """What was seen of each gate's samples, the latest last."""

    _seen: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def noted(self, results: Sequence[GateResult], now: float) -> tuple[GateResult, ...]:
        """The results, each with how long it takes until there are enough samples."""
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

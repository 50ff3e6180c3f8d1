"""The rate at which records are moved."""

from __future__ import annotations

from collections import deque

from libs.clock import Clock


class Rate:
    """Records per second over the last seconds."""

    def __init__(self, clock: Clock, window_seconds: float = 5.0) -> None:
        self._clock = clock
        self._window = window_seconds
        self._samples: deque[tuple[float, int]] = deque(maxlen=1000)

    def add(self, count: int) -> None:
        self._samples.append((self._clock.monotonic(), count))

    @property
    def per_second(self) -> float:
        now = self._clock.monotonic()
        while self._samples and self._samples[0][0] < now - self._window:
            self._samples.popleft()
        if not self._samples:
            return 0.0
        return sum(count for _, count in self._samples) / max(now - self._samples[0][0], 0.1)

"""Time as an argument: what needs a time takes a clock, and tests give their own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """UNIX seconds. For people and for measuring across processes; nothing is ordered or expired by it."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, within this process."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """Stands still until it is told to move."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.seconds = now

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

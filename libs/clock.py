"""Time as an argument: code that needs the time takes a clock, and tests pass their own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """UNIX seconds, for display and for measurements across processes. Nothing is ordered or expired by them."""
        ...

    def monotonic(self) -> float:
        """Seconds that never decrease, within this process."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class Age:
    """Age of one thing that has a date.

    From the first call on, the age grows at least as fast as the monotonic clock: a wall clock that is set back makes
    nothing younger.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._date: float | None = None
        self._first = 0.0
        self._asked = 0.0
        """Monotonic."""

    def seconds(self, date: float) -> float:
        """Age of the thing with this date, in UNIX seconds; another date means another thing. Negative if it is in the
        future."""
        age, now = self._clock.now() - date, self._clock.monotonic()
        if date != self._date:
            self._date, self._first, self._asked = date, age, now
        return max(age, self._first + now - self._asked)


class ManualClock:
    """A clock that moves only by `advance`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.seconds = now

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

"""A circuit breaker: while a server is unavailable, its callers fail at once instead of waiting for it.

    CLOSED   calls pass. A failure opens the breaker.
    OPEN     calls are refused. After a pause, one probe may be made.
    PROBING  calls are refused while the probe runs. Its success closes the breaker, its failure opens it again.

The outcome of a call that was in progress counts as well: it is the latest contact with the server.
"""

from __future__ import annotations

from enum import Enum

from libs.clock import Clock


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Breaker:
    """`pause_seconds`: time between a failure and the next probe. `opened`: number of times it opened."""

    def __init__(self, pause_seconds: float, clock: Clock) -> None:
        self.state = State.CLOSED
        self.opened = 0
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._probe_at = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value} opened={self.opened}>"

    @property
    def admits(self) -> bool:
        """Whether calls may be made."""
        return self.state is State.CLOSED

    def begin_probe(self) -> bool:
        """True: the caller makes the probe now, and reports its outcome."""
        if self.state is not State.OPEN or self._clock.monotonic() < self._probe_at:
            return False
        self.state = State.PROBING
        return True

    def succeeded(self) -> None:
        self.state = State.CLOSED

    def failed(self) -> None:
        self.opened += self.state is State.CLOSED
        self.state = State.OPEN
        self._probe_at = self._clock.monotonic() + self._pause_seconds

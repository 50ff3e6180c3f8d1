"""Retry rules for failed calls. Pure: time and chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass

from baton_client.errors import CallError

FIRST_SECONDS = 0.05
"""Delay before the second attempt; it doubles with each attempt."""
LONGEST_SECONDS = 2.0
_DOUBLINGS = 10


@dataclass
class Retries:
    """The attempts of one call. `ends`: the caller's deadline on the clock of `now`, or None."""

    ends: float | None
    failed: int = 0

    def left(self, now: float) -> float | None:
        """Seconds until the deadline, for the next attempt."""
        return None if self.ends is None else max(self.ends - now, 0.0)

    def pause(self, error: CallError, now: float, chance: float) -> float:
        """Seconds until the next attempt. `chance`: 0 to 1, which spreads callers that failed together.

        Raises the error if a retry cannot help, or not before the deadline.
        """
        seconds = max(self._backoff(), error.retry_seconds or 0.0) * (1.0 + 0.5 * chance)
        self.failed += 1
        if not error.may_pass or (self.ends is not None and now + seconds >= self.ends):
            raise error
        return seconds

    def _backoff(self) -> float:
        return min(FIRST_SECONDS * 2.0 ** min(self.failed, _DOUBLINGS), LONGEST_SECONDS)


@dataclass
class Watching(Retries):
    """The attempts of a watch, which continues until its deadline."""

    patience_seconds: float = 30.0
    """How long it may fail between two answers."""
    answered: float = 0.0
    """Time of the last answer, or of the start."""

    def note_answer(self, now: float) -> None:
        self.failed, self.answered = 0, now

    def pause(self, error: CallError, now: float, chance: float) -> float:
        """Like `Retries.pause`."""
        if now - self.answered >= self.patience_seconds:
            raise error
        return super().pause(error, now, chance)

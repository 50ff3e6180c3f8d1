"""Whether a store is at fault if a call's deadline passes without an answer. Pure: time is an argument."""

from __future__ import annotations

LATE_SECONDS = 1.0
"""A store that does not answer a call for this long is at fault, whatever the deadline was."""


class Lateness:
    """The calls of one store. `now` is monotonic seconds and never goes back."""

    def __init__(self) -> None:
        self._answered_at: float | None = None
        self._silent_since: float | None = None
        """Start of the first call whose deadline passed, after the store's last answer."""

    def answered(self, now: float) -> None:
        self._answered_at = now
        self._silent_since = None

    def is_late(self, began: float, now: float) -> bool:
        """Whether the store is at fault if a call's deadline passes now.

        The caller chooses the deadline. The store is at fault if it had LATE_SECONDS for this call. It also is if it
        has answered no call for LATE_SECONDS while deadlines passed: then it hangs.
        """
        if self._silent_since is None:
            answered = began if self._answered_at is None else self._answered_at
            self._silent_since = max(began, answered)
        return now - min(began, self._silent_since) >= LATE_SECONDS

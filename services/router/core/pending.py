"""A call that waits for a second person. It is a part of the setting, so that all routers have the same ones."""

from __future__ import annotations

from dataclasses import dataclass

EXPIRES_SECONDS = 600.0
CLOCKS_APART_SECONDS = 60.0
"""A call from further in the future than this has expired too: a clock is wrong."""
MAX_PENDING = 16


@dataclass(frozen=True, slots=True)
class PendingCall:
    id: str
    method: str
    request: bytes
    """The exact request."""
    subject: str
    """Authenticated subject of the caller."""
    reason: str
    basis: str
    """Hash of the setting that the call was made on (`approvals.basis`)."""
    seconds: float
    """UNIX time of the call."""
    unknown: tuple[tuple[str, str], ...] = ()
    """Fields of a newer release: name, and value as JSON. They are kept."""

    def is_live(self, now: float) -> bool:
        return -CLOCKS_APART_SECONDS <= now - self.seconds < EXPIRES_SECONDS

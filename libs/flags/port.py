"""Sources of flags. A flag is true, false or unset; its meaning is the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from libs.errors import BatonError


class FlagsUnavailable(BatonError):
    """The flags are unavailable; the last known values stay in force."""

    code = "UNAVAILABLE"
    reason = "FLAGS_UNAVAILABLE"
    retry_seconds = 1.0


class FlagReading(NamedTuple):
    """Result of one evaluation of a flag."""

    value: bool | None
    """None: unset. A flag that the source lacks or has disabled is unset."""
    trouble: str = ""
    """Why the source's flag is neither true nor false; then `value` is meaningless. Else ""."""


class FlagSource(Protocol):
    name: str
    """Display name: "control store", "flagd file /etc/baton/flags.json"."""

    def evaluate(self, names: Sequence[str]) -> Mapping[str, FlagReading]:
        """Current values of exactly these flags.

        May block as long as the source takes, so it is called in a thread unless the source is in memory; not
        concurrently. Raises only FlagsUnavailable.
        """
        ...

    async def watch(self, timeout_seconds: float) -> None:
        """Return when flags may have changed since the last `watch` returned, and at the latest after the time."""
        ...

    def close(self) -> None:
        """Release all resources. Does not block. May be called twice."""
        ...

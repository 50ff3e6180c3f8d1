"""Where flags come from. A flag is true, false, or unset; what it means is the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from libs.errors import BatonError


class FlagsUnavailable(BatonError):
    """Nothing is known of the flags now; go on with what was last known."""

    code = "UNAVAILABLE"
    reason = "FLAGS_UNAVAILABLE"
    retry_seconds = 1.0


class Seen(NamedTuple):
    """What one look at a flag has shown."""

    value: bool | None
    """None: unset. A flag that the source does not have, or has disabled, is unset."""
    trouble: str = ""
    """Not "": the source has the flag, but not as true or false. `value` says nothing then."""


class FlagSource(Protocol):
    name: str
    """For people: "control store", "flagd file /etc/baton/flags.json"."""

    def evaluate(self, names: Sequence[str]) -> Mapping[str, Seen]:
        """What each of the flags is now, exactly these names.

        May block as long as the source takes, so it is called in a thread unless the source is in memory; one call at
        a time. Raises FlagsUnavailable, and nothing else.
        """
        ...

    async def watch(self, timeout_seconds: float) -> None:
        """Returns when something may have changed since the last `watch` returned, at the latest after the time."""
        ...

    def close(self) -> None:
        """Gives up what it holds. Does not block. May be called twice."""
        ...

"""The watch for clients that call the old service directly, from the reports of its process. Pure.

A process of A remembers its callers since its start. So a router that looks now and then misses no caller as long as
that process lives; calls between the last look and the end of a process are lost. A gap as short as a restart does not
end the watch: a client that still calls A calls more often than in such gaps, for four weeks.

No wall clock takes part: a router's clock that jumps ahead must not lengthen the watch. The uptime of A's process is
monotonic and the same for all routers, so the watch grows by it, and routers that look at the same time count no second
twice. A router measures a gap between two processes by its own monotonic clock. If it did not live through the gap,
the length of the gap is unknown, and the watch begins again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

GAP_SECONDS = 600.0
"""Longest time between the last look at a process of A and the start of the next one that does not end the watch."""


@dataclass(frozen=True, slots=True)
class DirectClients:
    """The state of the watch after the last look. It has durations only, no times of day."""

    process: str
    """Start id of A's process."""
    uptime_seconds: float
    watched_seconds: float
    """Time for which A's callers are known."""
    idle_seconds: float | None = None
    """Time since the last direct call; None: no call is known."""
    name: str = ""
    """Name of the last caller."""
    former: str = ""
    """Start id of the previous process. A late look at it is ignored."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """A report of A's process."""

    process: str
    uptime_seconds: float
    last: tuple[str, float] | None = None
    """The last caller, and seconds since its call."""


def from_json(text: str) -> DirectClients | None:
    """The state in a stored text; None if another version of this program wrote it."""
    try:
        found = DirectClients(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return found


def looked(before: DirectClients | None, look: ProcessReport, unseen_seconds: float | None) -> DirectClients:
    """The state after a look. `unseen_seconds`: monotonic time since this router's previous look; None: this is its
    first."""
    if before is None:
        after = DirectClients(look.process, look.uptime_seconds, look.uptime_seconds)
        grown = 0.0
    elif look.process == before.former:
        return before
    elif look.process == before.process:
        grown = max(0.0, look.uptime_seconds - before.uptime_seconds)
        after = replace(
            before,
            uptime_seconds=before.uptime_seconds + grown,
            watched_seconds=before.watched_seconds + grown,
        )
    else:
        # The last caller before the gap stays known; callers within the gap are not.
        grown = look.uptime_seconds
        short = unseen_seconds is not None and unseen_seconds - look.uptime_seconds <= GAP_SECONDS
        watched = grown + before.watched_seconds if short else grown
        after = DirectClients(look.process, grown, watched, before.idle_seconds, before.name, before.process)
    if after.idle_seconds is not None:
        after = replace(after, idle_seconds=after.idle_seconds + grown)
    if look.last is not None and (after.idle_seconds is None or look.last[1] < after.idle_seconds):
        after = replace(after, name=look.last[0], idle_seconds=look.last[1])
    return after

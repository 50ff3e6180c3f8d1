"""How long nobody has called the old service directly, from what its processes remember. Pure.

A process of A remembers who called it since it was started. So a router that looks now and then misses nothing as long
as that process lives; what came between the last look and the end of a process is lost. A gap of so few seconds as a
restart takes does not end the watch: who calls A still calls more often than in such gaps, for four weeks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

GAP_SECONDS = 600.0
"""Between the last look at a process of A and the start of the next one."""


@dataclass(frozen=True, slots=True)
class DirectClients:
    """Times are UNIX times in seconds."""

    since: float
    """From when on it is known who called."""
    until: float
    """Of the last look."""
    called_at: float = 0.0
    """When somebody called last; 0: nobody did."""
    name: str = ""
    """Who that was."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def from_json(text: str) -> DirectClients | None:
    """None for what another version of this program has written."""
    try:
        found = DirectClients(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return found


def looked(
    before: DirectClients | None, now: float, uptime_seconds: float, last: tuple[str, float] | None
) -> DirectClients:
    """After a look at A's process, which is so old. `last`: who called it last, and how many seconds ago."""
    started = now - uptime_seconds
    if before is None or started > before.until + GAP_SECONDS:
        # Whoever called before is still known; who called in the gap is not.
        before = DirectClients(started, now) if before is None else replace(before, since=started)
    if last is not None and now - last[1] > before.called_at:
        before = replace(before, called_at=now - last[1], name=last[0])
    return replace(before, until=max(now, before.until))

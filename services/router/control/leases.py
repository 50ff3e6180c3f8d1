"""When the role of another holder may be taken over, without trusting anybody's wall clock.

A holder raises its lease's `renewals` with each renewal. Whoever wants the role remembers what it saw, and when by its
own monotonic clock; a lease that has stood still for its whole time to live is over. So a new contender waits one time
to live at most after a holder died, and a clock that was set wrong neither ends a lease nor keeps a dead one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from libs.clock import Clock


class Lease(NamedTuple):
    """A role as the control store has it."""

    holder: str
    renewals: int
    ttl_seconds: float


@dataclass(slots=True)
class LeaseObservations:
    """What one process has seen of others' leases."""

    clock: Clock
    _seen: dict[str, tuple[Lease, float]] = field(default_factory=dict)

    def may_take(self, name: str, lease: Lease | None, holder: str) -> bool:
        """Whether `holder` may write itself into the role that now is as `lease` says (None: nobody's)."""
        if lease is None or lease.holder == holder:
            self._seen.pop(name, None)
            return True
        now = self.clock.monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != lease:
            self._seen[name] = (lease, now)
            return False
        return now - known[1] >= lease.ttl_seconds

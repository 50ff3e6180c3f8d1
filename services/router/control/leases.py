"""Decides when a lease of another holder has expired, without any wall clock.

A holder raises its lease's `renewals` with each renewal. A contender records the lease that it read, with the time by
its own monotonic clock. A lease that has not changed for its whole time to live has expired. So a contender waits at
most one time to live after a holder's death, and a wrong clock neither ends a lease early nor keeps a dead one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from libs.clock import Clock


class Lease(NamedTuple):
    """A lease as the control store has it."""

    holder: str
    renewals: int
    ttl_seconds: float


@dataclass(slots=True)
class LeaseObservations:
    """Other holders' leases, as one process has read them."""

    clock: Clock
    _seen: dict[str, tuple[Lease, float]] = field(default_factory=dict)

    def may_take(self, name: str, lease: Lease | None, holder: str) -> bool:
        """Whether `holder` may take the lease that is now `lease`; None: free."""
        if lease is None or lease.holder == holder:
            self._seen.pop(name, None)
            return True
        now = self.clock.monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != lease:
            self._seen[name] = (lease, now)
            return False
        return now - known[1] >= lease.ttl_seconds

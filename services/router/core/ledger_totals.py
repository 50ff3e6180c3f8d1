"""The totals of all ledgers of a migration, beyond the life of the routers that counted. Pure.

A router's counts grow from its start, except the number of waiting writes. If a count is below its known value, the
router has restarted under its name. The counts of a router that has ended are added once. Its waiting writes are never
checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from services.router.core.write_ledger import LedgerCounts


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    ended: LedgerCounts = field(default_factory=LedgerCounts)
    """The sum over routers that have ended."""
    running: Mapping[str, LedgerCounts] = field(default_factory=dict)
    """The last known counts by router."""

    @property
    def total(self) -> LedgerCounts:
        return reduce(LedgerCounts.plus, self.running.values(), self.ended)

    def seen(self, reports: Mapping[str, LedgerCounts]) -> LedgerTotals:
        """The totals after a look at the reports of all routers."""
        over = [counts for name, counts in self.running.items() if _is_over(counts, reports.get(name))]
        ended = reduce(LedgerCounts.plus, map(_closed, over), self.ended)
        return LedgerTotals(ended, dict(reports))


def _is_over(known: LedgerCounts, now: LedgerCounts | None) -> bool:
    return now is None or any(after < before for before, after in zip(_grown(known), _grown(now), strict=True))


def _grown(counts: LedgerCounts) -> LedgerCounts:
    """The counts that only grow."""
    return counts._replace(waiting=0)


def _closed(counts: LedgerCounts) -> LedgerCounts:
    return counts._replace(dropped=counts.dropped + counts.waiting, waiting=0)

"""What this router has done with its clients' calls: counters for status and metrics."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from libs.ownership.model import Store

WATCHED_KEYS = 10_000
"""How many keys' handoffs are counted at most, the latest ones."""


@dataclass(slots=True)
class Traffic:
    reads: Counter[Store] = field(default_factory=Counter)
    """Answered calls, by the store that answered."""
    writes: Counter[Store] = field(default_factory=Counter)
    failures: Counter[Store] = field(default_factory=Counter)
    """Server faults, by the store that failed."""
    handoffs: int = 0
    stale_reads: int = 0
    unavailable: int = 0
    """Calls that ended with UNAVAILABLE."""
    overloaded: int = 0
    _moves: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def moved(self, key: str) -> None:
        """A record was handed over for a call."""
        self.handoffs += 1
        self._moves[key] = self._moves.pop(key, 0) + 1
        if len(self._moves) > WATCHED_KEYS:
            self._moves.popitem(last=False)

    def ping_pong(self, at_least: int = 5, most: int = 10) -> list[tuple[str, int]]:
        """Keys that were handed over most often, with how often."""
        moved = [(key, times) for key, times in self._moves.items() if times >= at_least]
        return sorted(moved, key=lambda entry: -entry[1])[:most]

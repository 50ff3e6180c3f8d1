"""Counters of this router's client calls, for status and metrics."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.ownership.model import Store, bucket_of
from services.router.core.measure import Meter

WATCHED_KEYS = 10_000
"""Maximum number of keys whose handoffs are counted: those of the latest handoffs."""


@dataclass(slots=True)
class Watch:
    """Counts of client calls on some buckets, kept during a rehearsal."""

    name: str
    buckets: frozenset[int]
    calls: int = 0
    errors: int = 0
    """Server faults seen by clients."""
    handoffs: int = 0


class Answered(NamedTuple):
    """One router's counts for the jobs of all routers."""

    by_b: int = 0
    """Client calls that B has answered since the router started."""
    watch: str = ""
    """The name of the watch there, and its counts."""
    calls: int = 0
    errors: int = 0
    handoffs: int = 0


class Totals(NamedTuple):
    """One router's counts of client calls since it started, as pairs of A's and B's count."""

    reads: tuple[int, int] = (0, 0)
    writes: tuple[int, int] = (0, 0)
    failures: tuple[int, int] = (0, 0)
    handoffs: int = 0
    stale_reads: int = 0
    unavailable: int = 0

    def plus(self, other: Totals) -> Totals:
        return Totals(
            _both(self.reads, other.reads),
            _both(self.writes, other.writes),
            _both(self.failures, other.failures),
            self.handoffs + other.handoffs,
            self.stale_reads + other.stale_reads,
            self.unavailable + other.unavailable,
        )


def _both(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


@dataclass(slots=True)
class Traffic:
    reads: Counter[Store] = field(default_factory=Counter)
    """Answered calls, by the store that answered."""
    writes: Counter[Store] = field(default_factory=Counter)
    failures: Counter[Store] = field(default_factory=Counter)
    """Server faults, by the store that failed."""
    waiting: Counter[Store] = field(default_factory=Counter)
    """Calls that are waiting for an unreachable store."""
    handoffs: int = 0
    stale_reads: int = 0
    unavailable: int = 0
    """Calls that ended with UNAVAILABLE."""
    meter: Meter = field(default_factory=Meter)
    """Measurements of each attempt at a store, for gates and automatic rollback."""
    watch: Watch | None = None
    _moves: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def moved(self, key: str) -> None:
        """Count a handoff of a record for a call."""
        self.handoffs += 1
        if self.watch is not None and bucket_of(key) in self.watch.buckets:
            self.watch.handoffs += 1
        self._moves[key] = self._moves.pop(key, 0) + 1
        if len(self._moves) > WATCHED_KEYS:
            self._moves.popitem(last=False)

    def totals(self) -> Totals:
        reads, writes, failures = (
            (count[Store.A], count[Store.B]) for count in (self.reads, self.writes, self.failures)
        )
        return Totals(reads, writes, failures, self.handoffs, self.stale_reads, self.unavailable)

    def answered(self) -> Answered:
        by_b = self.reads[Store.B] + self.writes[Store.B]
        watch = self.watch
        return Answered(by_b, watch.name, watch.calls, watch.errors, watch.handoffs) if watch else Answered(by_b)

    def note(self, bucket: int, *, failed: bool) -> None:
        """Count the end of a client's call."""
        if self.watch is not None and bucket in self.watch.buckets:
            self.watch.calls += 1
            self.watch.errors += failed

    def ping_pong(self, at_least: int = 5, most: int = 10) -> list[tuple[str, int]]:
        """Return the keys with the most handoffs, and their number."""
        moved = [(key, times) for key, times in self._moves.items() if times >= at_least]
        return sorted(moved, key=lambda entry: -entry[1])[:most]

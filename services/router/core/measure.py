"""Measurements of the calls to both stores: numbers, faults, latencies. Pure: time is an argument.

Counts of one second each serve automatic rollback, which looks at half a minute. Counts and latencies of
one minute each serve the gates, which look at up to an hour. Both are bounded for any traffic, and can be summed
over routers.

Latencies are kept as counts in buckets (`libs.telemetry.latency`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.ownership.model import Store
from libs.telemetry.latency import P99, Histogram, bucket_of_seconds, quantile
from libs.telemetry.lateness import Lateness

SECONDS = 60
"""Number of slots of one second."""

PERIOD_SECONDS = 10
PERIODS = 90
"""Number of slots of PERIOD_SECONDS, for people: a quarter of an hour."""

MINUTES = 60
"""Number of slots of one minute, including the current one."""

ERROR_MINUTES = 10
"""Number of slots that error rates are made from."""

LEAST_A_MINUTE = 10
"""Calls that each store must have served in a minute for the minute to count in a comparison."""


class Counts(NamedTuple):
    """Numbers of calls in a period. `total` adds them."""

    calls: int = 0
    """Calls that a store carried out or failed, including justified refusals."""
    faults: int = 0
    """Server faults among them."""
    denials: int = 0
    """NOT_OWNER answers and answers for another store. They show that a store is reachable, and are not in `calls`."""

    @property
    def rate(self) -> float:
        """Share of faults; 0 without calls."""
        return self.faults / self.calls if self.calls else 0.0

    @property
    def answered(self) -> int:
        """Calls and denials."""
        return self.calls + self.denials


def total(parts: Iterable[Counts]) -> Counts:
    calls = faults = denials = 0
    for part in parts:
        calls += part.calls
        faults += part.faults
        denials += part.denials
    return Counts(calls, faults, denials)


class ShadowCounts(NamedTuple):
    """Numbers of reads compared in the background, by result."""

    compared: int = 0
    match: int = 0
    stale: int = 0
    mismatch: int = 0
    missing: int = 0
    error: int = 0
    dropped: int = 0
    """Reads that were not compared, because the queue was full."""
    allowed: int = 0
    """Different as the contract allows, and equal otherwise."""

    def plus(self, other: ShadowCounts) -> ShadowCounts:
        return ShadowCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Parity(NamedTuple):
    """One operation at both stores, over the minutes in which both served it."""

    operation: str
    """Name of the operation, with " (direct)" for calls that did not come through a router: their latencies lack a hop.
    """
    is_read: bool
    a: Histogram
    b: Histogram


@dataclass(slots=True)
class _Cell:
    """One operation at one store in one minute."""

    calls: int = 0
    faults: int = 0
    latencies: Histogram = field(default_factory=Counter)


@dataclass(slots=True)
class _Second:
    calls: int = 0
    faults: int = 0
    denials: int = 0
    latencies: Histogram = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    """Calls by operation."""

    @property
    def counts(self) -> Counts:
        return Counts(self.calls, self.faults, self.denials)


def _second() -> dict[Store, _Second]:
    return {store: _Second() for store in Store}


_Minute = dict[tuple[Store, str, bool], _Cell]

_NO_CALLS = (Counts(), Counts())


class Meter:
    """One router's measurements. `now` is monotonic seconds and never goes back."""

    def __init__(self) -> None:
        self._at = -1
        self._ends = 0.0
        self._second = _second()
        self._seconds: deque[dict[Store, _Second]] = deque(maxlen=SECONDS)
        self._period = _NO_CALLS
        self._periods: deque[tuple[Counts, Counts]] = deque(maxlen=PERIODS)
        self._lateness = {store: Lateness() for store in Store}
        self._minute: _Minute = {}
        self.answered: Counter[Store] = Counter()
        """Reported calls without a fault, since the start."""
        self._minutes: deque[_Minute] = deque([self._minute], maxlen=MINUTES)

    def add(self, store: Store, operation: str, is_read: bool, seconds: float | None, fault: bool, now: float) -> None:
        """Count one attempt at a store. `seconds`: its latency; None: not for comparison. Latencies of faults are not
        kept: they do not show how fast a store works."""
        if now >= self._ends:
            self._roll(now)
        if not fault:
            self._lateness[store].answered(now)
        second = self._second[store]
        second.calls += 1
        second.operations[operation] += 1
        key = (store, operation, is_read)
        cell = self._minute.get(key)
        if cell is None:
            cell = self._minute[key] = _Cell()
        cell.calls += 1
        if fault:
            second.faults += 1
            cell.faults += 1
        elif seconds is not None:
            bucket = bucket_of_seconds(seconds)
            cell.latencies[bucket] += 1
            second.latencies[bucket] += 1

    def denied(self, store: Store, now: float) -> None:
        """Count an answer NOT_OWNER, or an answer for the other store."""
        if now >= self._ends:
            self._roll(now)
        self._lateness[store].answered(now)
        self._second[store].denials += 1

    def is_late(self, store: Store, began: float, now: float) -> bool:
        """Whether the store is at fault if an attempt's deadline passes without an answer."""
        return self._lateness[store].is_late(began, now)

    def add_reported(
        self, store: Store, operation: str, is_read: bool, counts: Counts, latencies: Histogram, now: float
    ) -> None:
        """Count calls that a process of the store has reported."""
        if now >= self._ends:
            self._roll(now)
        second = self._second[store]
        cell = self._minute.setdefault((store, operation, is_read), _Cell())
        self.answered[store] += counts.calls - counts.faults
        second.operations[operation] += counts.calls
        for counted in (second, cell):
            counted.calls += counts.calls
            counted.faults += counts.faults
            counted.latencies.update(latencies)

    def compared(self, store: Store, operation: str, is_read: bool, seconds: float, now: float) -> None:
        """Count the latency of a background call, to compare it with the other store's."""
        if now >= self._ends:
            self._roll(now)
        key = (store, operation, is_read)
        cell = self._minute.get(key)
        if cell is None:
            cell = self._minute[key] = _Cell()
        cell.latencies[bucket_of_seconds(seconds)] += 1

    def seconds(self, now: float) -> tuple[tuple[Counts, Counts], ...]:
        """Counts of A and B in each complete second, the newest first."""
        if now >= self._ends:
            self._roll(now)
        return tuple((slot[Store.A].counts, slot[Store.B].counts) for slot in reversed(self._seconds))

    def latency(self, now: float, window_seconds: int, share: float = P99) -> float | None:
        """A quantile of the latencies of both stores in the last complete seconds; None: no calls."""
        if now >= self._ends:
            self._roll(now)
        window: Histogram = Counter()
        for slot in list(self._seconds)[-window_seconds:]:
            for second in slot.values():
                window.update(second.latencies)
        return quantile(window, share)

    def latencies(self, store: Store, now: float, window_seconds: int) -> Histogram:
        """Latencies of one store in the last complete seconds."""
        if now >= self._ends:
            self._roll(now)
        window: Histogram = Counter()
        for slot in list(self._seconds)[-window_seconds:]:
            window.update(slot[store].latencies)
        return window

    def operations(self, store: Store, now: float, window_seconds: int) -> Counter[str]:
        """Calls of one store in the last complete seconds, by operation."""
        if now >= self._ends:
            self._roll(now)
        window: Counter[str] = Counter()
        for slot in list(self._seconds)[-window_seconds:]:
            window.update(slot[store].operations)
        return window

    def periods(self, now: float) -> tuple[tuple[Counts, Counts], ...]:
        """Counts of A and B in each complete period of PERIOD_SECONDS, the newest first."""
        if now >= self._ends:
            self._roll(now)
        return tuple(reversed(self._periods))

    def recent(self, store: Store, now: float) -> Counts:
        """Calls and faults of the last ERROR_MINUTES minutes, including the current one."""
        if now >= self._ends:
            self._roll(now)
        minutes = list(self._minutes)[-ERROR_MINUTES:]
        return total(
            Counts(cell.calls, cell.faults) for minute in minutes for key, cell in minute.items() if key[0] is store
        )

    def parities(self, now: float) -> tuple[Parity, ...]:
        """Latencies of each operation at both stores, over the minutes in which both have served it."""
        if now >= self._ends:
            self._roll(now)
        found: dict[tuple[str, bool], Parity] = {}
        for minute in self._minutes:
            for (store, operation, is_read), cell in minute.items():
                other = minute.get((Store.B, operation, is_read)) if store is Store.A else None
                if other is None or min(cell.latencies.total(), other.latencies.total()) < LEAST_A_MINUTE:
                    continue
                parity = found.setdefault((operation, is_read), Parity(operation, is_read, Counter(), Counter()))
                parity.a.update(cell.latencies)
                parity.b.update(other.latencies)
        return tuple(found[key] for key in sorted(found))

    def _roll(self, now: float) -> None:
        """Close the seconds and minutes that are over. Those without calls count as empty."""
        at = int(now)
        if self._at >= 0:
            # One more than the slots, so that a long silence replaces them all.
            for passed in range(min(at - self._at, SECONDS + 1)):
                self._seconds.append(self._second if not passed else _second())
            a, b = self._period
            self._period = total((a, self._second[Store.A].counts)), total((b, self._second[Store.B].counts))
            for _ in range(min(at // PERIOD_SECONDS - self._at // PERIOD_SECONDS, PERIODS)):
                self._periods.append(self._period)
                self._period = _NO_CALLS
            for _ in range(min(at // 60 - self._at // 60, MINUTES)):
                self._minute = {}
                self._minutes.append(self._minute)
            self._second = _second()
        self._at = at
        self._ends = at + 1.0


def merged(parts: Iterable[Parity]) -> tuple[Parity, ...]:
    """Merge the parities of several routers, by operation."""
    found: dict[tuple[str, bool], Parity] = {}
    for part in parts:
        key = (part.operation, part.is_read)
        parity = found.setdefault(key, Parity(part.operation, part.is_read, Counter(), Counter()))
        parity.a.update(part.a)
        parity.b.update(part.b)
    return tuple(found[key] for key in sorted(found))

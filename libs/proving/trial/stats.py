"""Figures of a load: counts by kind of answer, and latencies for any time window."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field

from libs.proving.history.history import Outcome

KEPT_REQUESTS = 500_000


@dataclass(frozen=True, slots=True)
class Finished:
    """A request whose outcome is known, or that was given up as UNKNOWN. Times are monotonic seconds.

    ``start``: start of the first attempt, so that the duration includes all waiting for retries.
    """

    start: float
    end: float
    method: str
    outcome: Outcome
    attempts: int

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) * 1000


@dataclass(frozen=True, slots=True)
class Window:
    """The requests in progress during a period of time."""

    requests: int
    slowest_milliseconds: float
    slowest_method: str
    errors: int
    """Attempts during it that ended without a proper answer."""


@dataclass(slots=True)
class Stats:
    """Counts of one load. The number of kept requests and errors is limited; the counts are not."""

    attempts: int = 0
    requests: int = 0
    acknowledged_writes: int = 0
    answered_reads: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Proper refusals by reason: the name is missing or exists already, or the etag is old."""
    errors: Counter[str] = field(default_factory=Counter)
    """Attempts without a proper answer, by reason. A write is then retried with its request id."""
    stale_reads: int = 0
    unknown_outcomes: int = 0
    """Writes given up without a known outcome."""
    finished: deque[Finished] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    error_times: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))

    def add(self, request: Finished) -> None:
        """Called in the order in which requests end."""
        self.finished.append(request)
        self.requests += 1

    def error(self, reason: str, at: float) -> None:
        self.errors[reason] += 1
        self.error_times.append(at)

    def window(self, start: float, end: float) -> Window:
        """Requests that were in progress at some time between the two, in monotonic seconds.

        A request that began before counts from ``start`` on: its earlier waiting does not belong to this period.
        """
        since = bisect_left(self.finished, start, key=lambda request: request.end)
        under_way = [self.finished[place] for place in range(since, len(self.finished))]
        under_way = [request for request in under_way if request.start <= end]
        errors = sum(start <= moment <= end for moment in self.error_times)
        if not under_way:
            return Window(0, 0.0, "", errors)
        waits = [((request.end - max(request.start, start)) * 1000, request.method) for request in under_way]
        return Window(len(under_way), *max(waits), errors)

    def percentile(self, share: float) -> float:
        """Latency in milliseconds below which this share of the kept, answered requests stayed; 0 without any."""
        times = sorted(request.milliseconds for request in self.finished if request.outcome is not Outcome.UNKNOWN)
        return times[min(int(len(times) * share), len(times) - 1)] if times else 0.0

"""The figures that a running demo shows, taken from the router's status and from the load."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.history.history import Outcome
from libs.proving.trial.load import Load
from libs.proving.trial.walk import pb_store, phase_name

LATENCY_SECONDS = 5.0
"""Requests that ended so recently count for the latencies."""


@dataclass(frozen=True, slots=True)
class StoreGlance:
    """A store's state as the router sees it. Rates are answered client calls per second."""

    state: str
    reads: float
    writes: float
    records: int
    buckets: int
    lag_seconds: float | None

    @property
    def lag(self) -> str:
        return "?" if self.lag_seconds is None else f"{self.lag_seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Glance:
    """The system's state at one moment."""

    seconds: float
    phase: str
    stores: dict[str, StoreGlance]
    calls_per_second: float
    handoffs: int
    stale_reads: int
    errors: int
    acknowledged: int = 0
    """Acknowledged writes so far."""
    p50: float = 0.0
    p99: float = 0.0
    """Latencies of the requests of the last LATENCY_SECONDS, in milliseconds. 0 without any."""
    hold: bool = False
    """After a rollback: all traffic stays at A."""


@dataclass(slots=True)
class Meter:
    """A maker of glances. Rates are differences from the previous glance."""

    load: Load
    _before: tuple[float, dict[str, tuple[int, int]], int] | None = None

    def glance(self, status: pb.GetStatusResponse) -> Glance:
        now = time.monotonic()
        stats = self.load.stats
        counts = {pb_store(store): (store.reads, store.writes) for store in status.stores}
        since, before, attempts = self._before or (now, counts, stats.attempts)
        passed = max(now - since, 0.001)
        self._before = (now, counts, stats.attempts)
        stores = {}
        for store in status.stores:
            name = pb_store(store)
            reads, writes = before.get(name, (0, 0))
            stores[name] = StoreGlance(
                state="serves" if store.serving else "away",
                reads=max(0.0, (store.reads - reads) / passed),
                writes=max(0.0, (store.writes - writes) / passed),
                records=store.owned_records,
                buckets=store.owned_buckets,
                lag_seconds=store.lag_seconds if store.HasField("lag_seconds") else None,
            )
        p50, p99 = self._latencies(now)
        return Glance(
            seconds=now - self.load.started,
            phase=phase_name(status.setting),
            stores=stores,
            calls_per_second=(stats.attempts - attempts) / passed,
            handoffs=status.handoffs,
            stale_reads=stats.stale_reads,
            errors=stats.errors.total(),
            acknowledged=stats.acknowledged_writes,
            p50=p50,
            p99=p99,
            hold=status.setting.hold,
        )

    def _latencies(self, now: float) -> tuple[float, float]:
        finished = self.load.stats.finished
        first = bisect_left(finished, now - LATENCY_SECONDS, key=lambda request: request.end)
        recent = (finished[place] for place in range(first, len(finished)))
        times = sorted(request.milliseconds for request in recent if request.outcome is not Outcome.UNKNOWN)
        if not times:
            return 0.0, 0.0
        return times[len(times) // 2], times[min(len(times) * 99 // 100, len(times) - 1)]

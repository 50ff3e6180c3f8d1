"""The router's metrics: what the gates judge by, as it is when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from libs.clock import Clock
from services.router.core.evidence import Evidence, Limits
from services.router.core.readings import METRICS, Metric

_SAME_SECONDS = 0.2
"""For so long the evidence is not made anew: one page has all metrics."""


class EvidenceMetrics:
    """A gauge for each of METRICS. Every router tells of all routers, so alarms take the highest."""

    def __init__(
        self, meter: Meter, evidence: Callable[[], Evidence], limits: Callable[[], Limits], clock: Clock
    ) -> None:
        self._evidence = evidence
        self._limits = limits
        self._clock = clock
        self._found: Evidence | None = None
        self._found_at = 0.0
        for metric in METRICS:
            meter.create_observable_gauge(metric.name, [self._reader(metric)], metric.unit, metric.description)

    def _reader(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [Observation(value, labels) for value, labels in metric.read(self._now(), self._limits())]

    def _now(self) -> Evidence:
        now = self._clock.monotonic()
        if self._found is None or now - self._found_at > _SAME_SECONDS:
            self._found, self._found_at = self._evidence(), now
        return self._found

"""The evidence of the gates as metrics of a router."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from opentelemetry.metrics import Meter as MetricsMeter

from libs.clock import Clock
from libs.telemetry.instruments import Reading, observe
from services.router.core.evidence import Evidence
from services.router.core.readings import READERS
from services.router.core.thresholds import Limits

_SAME_SECONDS = 0.2
"""The evidence is cached for this long, so that one scrape computes it once."""


class EvidenceMetrics:
    """A gauge for each of READERS. Each router reports the values of all routers, so alarms use the maximum."""

    def __init__(
        self, meter: MetricsMeter, evidence: Callable[[], Evidence], limits: Callable[[], Limits], clock: Clock
    ) -> None:
        self._evidence = evidence
        self._limits = limits
        self._clock = clock
        self._found: Evidence | None = None
        self._found_at = 0.0
        for name, read in READERS.items():
            observe(meter, name, partial(self._read, read))

    def _read(self, read: Callable[[Evidence, Limits], Iterable[Reading]]) -> Iterable[Reading]:
        return read(self._now(), self._limits())

    def _now(self) -> Evidence:
        now = self._clock.monotonic()
        if self._found is None or now - self._found_at > _SAME_SECONDS:
            self._found, self._found_at = self._evidence(), now
        return self._found

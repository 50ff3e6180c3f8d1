"""Histograms of durations with prepared cells, for paths on which each microsecond counts.

A cell is found once for its labels and kept; adding to it allocates nothing. A cell remembers the last trace of each
bucket, which OpenMetrics shows as its exemplar. The cells are read in the event loop that writes them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from libs.telemetry.metric import Metric

if TYPE_CHECKING:
    from prometheus_client.core import HistogramMetricFamily


class Traced(NamedTuple):
    """A call with a recorded trace."""

    trace_id: str
    seconds: float
    at: float
    """UNIX time."""


class Cell:
    """The durations of one combination of labels."""

    __slots__ = ("_edges", "counts", "seconds", "traced")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.seconds = 0.0
        self.traced: dict[int, Traced] = {}
        """The latest traced observation of each bucket."""

    def add(self, seconds: float, trace_id: str = "") -> None:
        """`trace_id`: of a trace that is recorded."""
        bucket = bisect_left(self._edges, seconds)
        self.counts[bucket] += 1
        self.seconds += seconds
        if trace_id:
            self.traced[bucket] = Traced(trace_id, seconds, time.time())


class Durations:
    """A histogram of the table of metrics. It is a collector of prometheus-client."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.cells: dict[tuple[str, ...], Cell] = {}
        """Cells by their labels, in the order of `Metric.labels`."""

    def __repr__(self) -> str:
        return f"<Durations {self.metric.name} cells={len(self.cells)}>"

    def cell(self, *labels: str) -> Cell:
        """The cell of these labels, in the order of `Metric.labels`."""
        found = self.cells.get(labels)
        if found is None:
            assert len(labels) == len(self.metric.labels), f"{self.metric.name}: {labels}"
            found = self.cells[labels] = Cell(self.metric.edges)
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram, if it has a cell."""
        if not self.cells:
            return
        # Only a process that exports metrics loads these modules.
        from prometheus_client.core import Exemplar, HistogramMetricFamily

        metric = self.metric
        family = HistogramMetricFamily(metric.exported, metric.meaning, labels=metric.labels, unit="seconds")
        for labels, cell in self.cells.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for number, count in enumerate(accumulate(cell.counts)):
                edge = str(metric.edges[number]) if number < len(metric.edges) else "+Inf"
                if (traced := cell.traced.get(number)) is None:
                    buckets.append((edge, count))
                else:
                    exemplar = Exemplar({"trace_id": traced.trace_id}, traced.seconds, traced.at)
                    buckets.append((edge, count, exemplar))
            family.add_metric(labels, buckets, cell.seconds)
        yield family

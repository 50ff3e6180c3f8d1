"""Metrics of a process, sent to an OTLP receiver at an interval.

They are read in the event loop, as the page for Prometheus is, and sent by a thread. Exemplars have no span id here, so
they are left out: OTLP takes only whole ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from libs.errors import BatonError
from libs.tasks import Loop
from libs.telemetry.durations import Durations
from libs.telemetry.otlp import SEND_SECONDS, Receiver, end_bounded, quiet_exporters

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import (
        HistogramDataPoint,
        InMemoryMetricReader,
        Metric,
        MetricExporter,
        MetricsData,
    )

_CANCEL_SECONDS = 1.0


class NotTaken(BatonError):
    """The receiver did not take the metrics; the next attempt sends newer ones."""


class Sender:
    """Reads the metrics of a process and sends them."""

    def __init__(self, reader: InMemoryMetricReader, durations: Sequence[Durations], exporter: MetricExporter) -> None:
        """`durations`: histograms that `reader` does not have."""
        self._reader = reader
        self._durations = durations
        self._exporter = exporter
        self._began = time.time_ns()

    async def send(self) -> None:
        """Raises NotTaken."""
        if (data := self.read()) is not None:
            await asyncio.to_thread(self._export, data)

    async def end(self) -> None:
        """Send the last metrics, for a bounded time, and close the connection."""
        data = self.read()

        def last() -> None:
            with suppress(NotTaken):
                if data is not None:
                    self._export(data)
            self._exporter.shutdown()

        await end_bounded(last, "metrics")

    def _export(self, data: MetricsData) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        if self._exporter.export(data, SEND_SECONDS * 1000) is not MetricExportResult.SUCCESS:
            raise NotTaken("the receiver of metrics did not take them: see otlp_endpoint")

    def read(self) -> MetricsData | None:
        """All metrics at this moment; None before the first one."""
        from opentelemetry.sdk.metrics.export import MetricsData as Data
        from opentelemetry.sdk.metrics.export import ResourceMetrics, ScopeMetrics

        data = self._reader.get_metrics_data()
        found = [self._histogram(one) for one in self._durations if one.cells]
        if data is None or not found:
            return data
        sender, *others = data.resource_metrics
        scope, *rest = sender.scope_metrics
        whole = ScopeMetrics(scope.scope, [*scope.metrics, *found], scope.schema_url)
        return Data([ResourceMetrics(sender.resource, [whole, *rest], sender.schema_url), *others])

    def _histogram(self, durations: Durations) -> Metric:
        from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram
        from opentelemetry.sdk.metrics.export import Metric as Exported

        metric, now = durations.metric, time.time_ns()
        points = [self._point(durations, labels, now) for labels in durations.cells]
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
        return Exported(metric.name, metric.meaning, metric.unit, data)

    def _point(self, durations: Durations, labels: tuple[str, ...], now: int) -> HistogramDataPoint:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        cell = durations.cells[labels]
        return HistogramDataPoint(
            attributes=dict(zip(durations.metric.labels, labels, strict=True)),
            start_time_unix_nano=self._began,
            time_unix_nano=now,
            count=sum(cell.counts),
            sum=cell.seconds,
            bucket_counts=tuple(cell.counts),
            explicit_bounds=durations.metric.edges,
            min=None,  # type: ignore[arg-type]  # optional in the protocol
            max=None,  # type: ignore[arg-type]
        )


def open_exporter(receiver: Receiver) -> MetricExporter:
    """An exporter that sends when it is called, in the thread of its caller."""
    # Only a process that sends metrics loads this module.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    quiet_exporters()
    return OTLPMetricExporter(
        receiver.endpoint, insecure=receiver.insecure, credentials=receiver.credentials(), timeout=SEND_SECONDS
    )


@asynccontextmanager
async def sending(sender: Sender, seconds: float) -> AsyncIterator[None]:
    """Send each `seconds` while the block runs, and at its end."""

    async def body(loop: Loop) -> None:
        await asyncio.sleep(seconds)
        await sender.send()
        loop.well()

    task = asyncio.create_task(Loop("metrics by OTLP", body).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_SECONDS)
        await sender.end()

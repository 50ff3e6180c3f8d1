"""A process's metrics by OTLP, at a real receiver over gRPC."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from pydantic import ValidationError

from libs.process import ProcessSettings, open_basis
from libs.proving.servers.ports import free_port
from libs.settings import WrongSetting
from libs.telemetry.metrics import open_metrics
from libs.telemetry.otlp import Receiver
from libs.telemetry.table import TABLE
from tests.waiting import eventually

SECONDS = 0.02
LABELS = ("s/Get", "public", "OK")


class Settings(ProcessSettings):
    """Settings of a program without settings of its own."""


class Collector(MetricsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []

    async def Export(  # noqa: N802
        self, request: ExportMetricsServiceRequest, context: object
    ) -> ExportMetricsServiceResponse:
        self.requests.append(request)
        return ExportMetricsServiceResponse()

    def last(self) -> dict[str, Metric]:
        """Metrics by name."""
        (sender,) = self.requests[-1].resource_metrics
        return {metric.name: metric for scope in sender.scope_metrics for metric in scope.metrics}


@asynccontextmanager
async def collecting(port: int) -> AsyncIterator[Collector]:
    collector, server = Collector(), grpc.aio.server()
    add_MetricsServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def receiver(port: int) -> Receiver:
    return Receiver(f"http://127.0.0.1:{port}", "router", "r-1")


async def test_a_receiver_gets_the_instruments_and_the_durations_with_their_sender() -> None:
    port = free_port()
    async with collecting(port) as collector, open_metrics("", None, "router", receiver(port), SECONDS) as metrics:
        assert metrics.served is not None
        cell = metrics.served.cell(*LABELS)
        for seconds in (0.0, 0.004, 1000.0):
            cell.add(seconds, trace_id="a" * 32)
        await eventually(lambda: collector.requests and "rpc.server.call.duration" in collector.last())
        found = collector.last()
        (sender,) = collector.requests[-1].resource_metrics
    assert {"baton.build.info", "process.cpu.time", "baton.event_loop.delay"} <= set(found)
    resource = {one.key: one.value.string_value for one in sender.resource.attributes}
    assert (resource["service.name"], resource["service.instance.id"]) == ("router", "r-1")

    calls, metric = found["rpc.server.call.duration"], TABLE["rpc.server.call.duration"]
    assert (calls.unit, calls.description) == (metric.unit, metric.meaning)
    assert calls.histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = calls.histogram.data_points
    labels = {one.key: one.value.string_value for one in point.attributes}
    assert labels == dict(zip(metric.labels, LABELS, strict=True))
    assert point.count == 3
    assert point.sum == pytest.approx(1000.004)
    assert tuple(point.explicit_bounds) == metric.edges
    assert len(point.bucket_counts) == len(metric.edges) + 1
    assert sum(point.bucket_counts) == 3
    assert (point.bucket_counts[0], point.bucket_counts[-1]) == (1, 1)
    assert point.start_time_unix_nano < point.time_unix_nano


async def test_the_last_metrics_are_sent_at_the_end_of_a_process() -> None:
    port = free_port()
    async with collecting(port) as collector:
        async with open_metrics("", None, "router", receiver(port), 3600) as metrics:
            assert metrics.sent is not None
            metrics.sent.cell("s/Get", "A", "OK").add(0.1)
        assert "rpc.client.call.duration" in collector.last()


@pytest.mark.slow
async def test_a_receiver_that_is_away_is_named_once_and_gets_newer_metrics_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()

    def warnings() -> list[str]:
        lines = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
        return [line for line in lines if "metrics by OTLP" in line]

    async with open_metrics("", None, "router", receiver(port), SECONDS):
        await eventually(lambda: warnings())
        async with collecting(port) as collector:
            await eventually(lambda: len(collector.requests) > 1)
    assert len(warnings()) == 1
    assert "see otlp_endpoint" in warnings()[0]


@pytest.mark.slow
async def test_a_receiver_that_hangs_does_not_keep_a_process_from_ending() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = asyncio.get_running_loop().time()
        async with open_metrics("", None, "router", receiver(silent.getsockname()[1]), SECONDS):
            await asyncio.sleep(3 * SECONDS)
        assert asyncio.get_running_loop().time() - began < 8.0


async def test_an_interval_without_a_receiver_stops_the_start() -> None:
    settings = Settings(event_log="memory:", otlp_metrics_seconds=30)
    with pytest.raises(WrongSetting, match="otlp_metrics_seconds: 30 needs otlp_endpoint"):
        async with open_basis(settings):
            pass


@pytest.mark.parametrize("seconds", [-1, 0.5, 3601])
def test_an_interval_out_of_bounds_stops_the_start(seconds: float) -> None:
    with pytest.raises(ValidationError, match="give 1 to 3600 seconds, or 0 for never"):
        Settings(event_log="memory:", otlp_metrics_seconds=seconds)

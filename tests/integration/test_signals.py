"""The metrics, traces and logs of real processes, with a real receiver of traces."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from libs.pb.baton.control.v1 import events_pb2
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.servers import locate
from libs.proving.servers.errors import ServerMissing
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.telemetry.table import EXPORTED, of_program
from tests.system.store import new, refusal
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

pytestmark = pytest.mark.slow

BOUND_SECONDS = 60.0
RULES = PROJECT_ROOT / "deploy" / "alerts.yaml"
PROGRAMS = {"a": "simple_mcp", "b-1": "service_layer", "router-1": "baton_router"}
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
SERVICE = "sandbox.v1.SandboxService"
SECRET = "hunter2-hunter2"
TRACE, OTHER_TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "b" * 32, "00f067aa0ba902b7"
CHAIN = (
    ("baton_router", "SPAN_KIND_SERVER"),
    ("baton_router", "SPAN_KIND_CLIENT"),
    ("simple_mcp", "SPAN_KIND_SERVER"),
    ("baton_router", "SPAN_KIND_PRODUCER"),
    ("service_layer", "SPAN_KIND_CONSUMER"),
)
"""The spans of one write at A, each the parent of the next one."""


class MetricsReceiver(MetricsServiceServicer):
    """A receiver of metrics by OTLP."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        """Names of the metrics, by program."""

    async def Export(  # noqa: N802
        self, request: ExportMetricsServiceRequest, context: object
    ) -> ExportMetricsServiceResponse:
        for sender in request.resource_metrics:
            resource = {one.key: one.value.string_value for one in sender.resource.attributes}
            names = self.names.setdefault(resource["service.name"], set())
            names |= {metric.name for scope in sender.scope_metrics for metric in scope.metrics}
        return ExportMetricsServiceResponse()


class Receiver(TraceServiceServicer):
    """A receiver of traces by OTLP, and of metrics."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        """With the program that sent each."""
        self.metrics = MetricsReceiver()

    async def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, context: object
    ) -> ExportTraceServiceResponse:
        for sender in request.resource_spans:
            resource = {one.key: one.value.string_value for one in sender.resource.attributes}
            self.spans += [(resource["service.name"], span) for scope in sender.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[tuple[str, Span]]:
        return [(program, span) for program, span in self.spans if span.trace_id.hex() == trace_id]


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str]]:
    """A receiver and its address."""
    receiver, server = Receiver(), grpc.aio.server()
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    add_MetricsServiceServicer_to_server(receiver.metrics, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield receiver, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def page(address: str, accept: str = "") -> tuple[str, str]:
    """Content type and text."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(BOUND_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
    kind = next(line for line in head.splitlines() if line.lower().startswith("content-type: "))
    return kind.partition(": ")[2], body


async def families(world: World, process: str) -> dict[str, Family]:
    """Metric families by the name that Prometheus reads."""
    _, text = await page(world.nodes[process].metrics)
    found = {}
    for family in text_string_to_metric_families(text):
        found[f"{family.name}_total" if family.type == "counter" else family.name] = family
    return found


def value(found: Iterable[Family], name: str, **labels: str) -> float:
    samples = (sample for family in found for sample in family.samples)
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


async def check_metrics(world: World) -> None:
    """The processes export the rows of the table of metrics, and nothing else."""
    async with open_channel(world.routers[0]) as channel:
        client: SandboxServiceAsyncStub = SandboxServiceStub(channel.grpc)
        for number in range(3):
            await client.CreateSandbox(new(f"n{number}", request_id=str(uuid4())), timeout=BOUND_SECONDS)
        await client.GetSandbox(pb.GetSandboxRequest(name="sandboxes/n0"), timeout=BOUND_SECONDS)
        error = await refusal(client.GetSandbox(pb.GetSandboxRequest(name="sandboxes/none"), timeout=BOUND_SECONDS))
        assert error.code() is grpc.StatusCode.NOT_FOUND

    for process, program in PROGRAMS.items():

        async def all_rows(process: str = process, program: str = program) -> bool:
            found = await families(world, process)
            wanted = {metric.exported for metric in of_program(program) if not metric.optional}
            missing = sorted(name for name in wanted if name not in found or not found[name].samples)
            assert not missing, f"{program} does not export {missing}"
            return True

        await eventually(all_rows, BOUND_SECONDS)
        exported = await families(world, process)
        known = {metric.exported for metric in of_program(program)}
        assert set(exported) <= known, f"{program} exports what is not in its table: {set(exported) - known}"
        for name, family in exported.items():
            metric = EXPORTED[name]
            assert (family.type, family.documentation) == (metric.kind.value, metric.meaning), name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels), name

    router, a = [(await families(world, process)).values() for process in ("router-1", "a")]
    served, sent = "rpc_server_call_duration_seconds_count", "rpc_client_call_duration_seconds_count"
    create, get = f"{SERVICE}/CreateSandbox", f"{SERVICE}/GetSandbox"
    for found, listener in ((router, "public"), (a, "internal")):
        assert value(found, served, rpc_method=create, listener=listener, rpc_response_status_code="OK") == 3
        assert value(found, served, rpc_method=get, listener=listener, rpc_response_status_code="OK") == 1
        assert value(found, served, rpc_method=get, listener=listener, rpc_response_status_code="NOT_FOUND") == 1
    assert value(router, sent, rpc_method=create, store="A", rpc_response_status_code="OK") == 3
    assert value(router, sent, rpc_method=get, store="A", rpc_response_status_code="NOT_FOUND") == 1
    assert value(router, "baton_answered_calls_total", store="A", kind="write") == 3
    assert value(router, "baton_phase_info", phase="OFF") == value(router, "baton_phase_info") == 1

    kind, text = await page(world.nodes["router-1"].metrics, OPEN_METRICS)
    assert kind.startswith(OPEN_METRICS)
    assert list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


async def check_sent_metrics(receiver: Receiver) -> None:
    """Each program sends the rows of the table of metrics, under their own names."""

    def missing() -> dict[str, list[str]]:
        sent = receiver.metrics.names
        wanted = {
            program: {metric.name for metric in of_program(program) if not metric.optional}
            for program in PROGRAMS.values()
        }
        return {program: sorted(names - sent.get(program, set())) for program, names in wanted.items()}

    def all_are_sent() -> bool:
        assert not any((found := missing()).values()), found
        return True

    await eventually(all_are_sent, BOUND_SECONDS)


async def check_traces(world: World, receiver: Receiver) -> None:
    """One write through router, A, outbox, log and B is one trace, and each process names it."""
    given = f"00-{TRACE}-{CALLER}-01"
    request = new("traced", request_id=str(uuid4()))
    request.sandbox.spec.env["KEY"] = SECRET
    async with open_channel(world.routers[0]) as channel:
        client: SandboxServiceAsyncStub = SandboxServiceStub(channel.grpc)
        made = await client.CreateSandbox(request, timeout=BOUND_SECONDS, metadata=(("traceparent", given),))
        other = f"00-{OTHER_TRACE}-{CALLER}-00"
        again = await client.CreateSandbox(request, timeout=BOUND_SECONDS, metadata=(("traceparent", other),))
        assert again == made, "the trace is no part of the request"
        wrong = await client.CreateSandbox(request, timeout=BOUND_SECONDS, metadata=(("traceparent", "00-x-y-01"),))
        assert wrong == made
        missing = pb.GetSandboxRequest(name="sandboxes/none")
        error = await refusal(client.GetSandbox(missing, timeout=BOUND_SECONDS, metadata=(("traceparent", given),)))
        assert dict(error.trailing_metadata() or ())[metadata.TRACE_ID] == TRACE

    def whole() -> dict[tuple[str, str], Span]:
        writes = [(program, span) for program, span in receiver.of(TRACE) if is_write(span)]
        found = {(program, Span.SpanKind.Name(span.kind)): span for program, span in writes}
        assert set(found) == set(CHAIN), sorted(found)
        return found

    found = await eventually(whole, BOUND_SECONDS)
    parent = CALLER
    for step in CHAIN:
        assert found[step].parent_span_id.hex() == parent, step
        parent = found[step].span_id.hex()
    assert found[CHAIN[0]].name == f"{SERVICE}/CreateSandbox"
    assert {span.trace_id.hex() for _, span in receiver.spans} == {TRACE}, "only the traces that a caller records"

    lines = [json.loads(line) for name in ("router-1", "a") for line in logged(world, name)]
    traced = {line["message"].partition(":")[0] for line in lines if line.get("trace_id") == TRACE}
    assert {f"{SERVICE}/CreateSandbox at {listener}" for listener in ("public", "internal")} <= traced
    async with open_channel(world.controls[0]) as channel:
        control: ControlServiceAsyncStub = ControlServiceStub(channel.grpc)
        token = ((metadata.TOKEN, world.operator_token),)
        asked = events_pb2.ReadEventsRequest(name="sandboxes/traced")
        shown = [answer.event.trace_id async for answer in control.ReadEvents(asked, metadata=token)]
    assert shown == [TRACE]


async def check_secrets(world: World, receiver: Receiver) -> None:
    """No secret is in a log, a span or a metric: neither a record's, nor the processes' token."""
    shown = [file.read_text(errors="replace") for file in world.directory.glob("*.log")]
    shown += [str(span) for _, span in receiver.spans]
    shown += [(await page(node.metrics))[1] for node in world.nodes.values()]
    assert len(shown) > 3 * len(world.nodes) and any("sandboxes/traced" in text for text in shown)
    assert not [text for text in shown if SECRET in text or world.token in text]


async def check_alert(world: World) -> None:
    """A real Prometheus reads the processes, and the death of B fires its alert."""
    try:
        program = locate.prometheus()
    except ServerMissing as error:
        pytest.skip(str(error))
    rules = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = "1s"
    (world.directory / "rules.yml").write_text(yaml.safe_dump(rules))
    targets = [{"targets": [node.metrics for node in world.nodes.values()]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "baton", "static_configs": targets}],
    }
    (world.directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=series", f"--web.listen-address={address}"]
    command = Command("prometheus", [str(program), *arguments], world.directory / "prometheus.log", world.directory)
    server = ServerProcess(command)

    async def asked(path: str) -> Any:
        def read() -> Any:
            with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=BOUND_SECONDS) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(read)

    async def firing() -> dict[str, dict[str, str]]:
        """Annotations by alert and store."""
        alerts = (await asked("alerts"))["alerts"]
        return {
            f"{one['labels']['alertname']} {one['labels'].get('store', '')}".strip(): one["annotations"]
            for one in alerts
            if one["state"] == "firing"
        }

    async def all_are_read() -> bool:
        try:
            found = (await asked("query?query=sum(up)"))["result"]
        except OSError:
            return False
        return bool(found) and found[0]["value"][1] == "3"

    await asyncio.to_thread(server.start)
    try:
        await eventually(all_are_read, BOUND_SECONDS)
        assert not [name for name in await firing() if name.startswith("BatonStoreDown")]
        await world.kill("b-1")

        async def fires() -> dict[str, str] | None:
            return (await firing()).get("BatonStoreDown B")

        annotations = await eventually(fires, BOUND_SECONDS)
        assert annotations is not None
        assert annotations["runbook_url"] == "docs/runbooks/store-down.md"
        assert annotations["summary"].startswith("Store B does not serve")
        assert "BatonStoreDown A" not in await firing()
    finally:
        await asyncio.to_thread(server.stop, signal.SIGTERM, BOUND_SECONDS)


def is_write(span: Span) -> bool:
    return not span.name.endswith("GetSandbox")


def logged(world: World, name: str) -> list[str]:
    """JSON lines of the log of a process."""
    return [line for line in (world.directory / f"{name}.log").read_text().splitlines() if line.startswith("{")]


async def test_real_processes_show_their_metrics_their_traces_and_their_logs(tmp_path: Path) -> None:
    async with receiving() as (receiver, endpoint):
        settings = {
            "otlp_endpoint": endpoint,
            "otlp_metrics_seconds": "1",
            "trace_percent": "0",
            "log_format": "json",
            "log_level": "debug",
            "log_calls_percent": "100",
        }
        world = World.embedded(tmp_path, size=Size(http=True, metrics=True, settings=settings))
        async with world.running():
            await check_metrics(world)
            await check_sent_metrics(receiver)
            await check_traces(world, receiver)
            await check_secrets(world, receiver)
            await check_alert(world)

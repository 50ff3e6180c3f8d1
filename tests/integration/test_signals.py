"""The metrics of real processes, compared with the table of metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.trial.world import Size, World
from libs.rpc.channel import open_channel
from libs.telemetry.table import EXPORTED, of_program
from tests.system.store import new, refusal
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

pytestmark = pytest.mark.slow

BOUND_SECONDS = 60.0
PROGRAMS = {"a": "simple_mcp", "b-1": "service_layer", "router-1": "baton_router"}
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
SERVICE = "sandbox.v1.SandboxService"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World.embedded(tmp_path, size=Size(http=True, metrics=True))
    async with world.running():
        yield world


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
    """By the name that Prometheus reads."""
    _, text = await page(world.nodes[process].metrics)
    found = {}
    for family in text_string_to_metric_families(text):
        found[f"{family.name}_total" if family.type == "counter" else family.name] = family
    return found


def value(found: Iterable[Family], name: str, **labels: str) -> float:
    samples = (sample for family in found for sample in family.samples)
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


async def test_processes_export_what_the_table_of_metrics_says_and_nothing_else(world: World) -> None:
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

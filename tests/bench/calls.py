"""Calls through the router against direct calls to the same store, and against a bare proxy."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import GetSandboxRequest, UpdateSandboxRequest
from libs.proving.trial.requests import SERVICE
from libs.rpc.channel import RawCallable
from libs.sandboxes.schema import METADATA, SCHEMAS
from tests.bench.measure import Contender, Figure, Meter, Round, Rounds, Target, alternate
from tests.bench.site import CALL_SECONDS, PROXY, SEED_RECORDS, Site, name_of

GET, UPDATE = "GetSandbox", "UpdateSandbox"
_numbers = itertools.count()


def path_of(method: str) -> str:
    return f"/{SERVICE}/{method}"


def get_request(number: int) -> bytes:
    return GetSandboxRequest(name=name_of(number)).SerializeToString()


def update_request(number: int) -> bytes:
    """An update that differs from all earlier ones."""
    sandbox = Sandbox(name=name_of(number), annotations={"bench": str(next(_numbers))})
    return UpdateSandboxRequest(
        sandbox=sandbox, update_mask=FieldMask(paths=["annotations"]), request_id=str(uuid4())
    ).SerializeToString()


SAYS = grpc.aio.Metadata((METADATA, str(SCHEMAS.newest)))
"""Metadata with the newest schema version, so that the old service does not convert its answers to direct calls."""

_REQUESTS = {GET: get_request, UPDATE: update_request}


async def run_calls(
    call: RawCallable, requests: list[bytes], in_flight: int, metadata: grpc.aio.Metadata | None = SAYS
) -> list[float]:
    """Send all requests, `in_flight` at a time. Returns milliseconds per call."""
    milliseconds: list[float] = []
    waiting: Iterator[bytes] = iter(requests)

    async def worker() -> None:
        for request in waiting:
            began = time.perf_counter()
            await call(request, timeout=CALL_SECONDS, metadata=metadata)
            milliseconds.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return milliseconds


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    addresses = {"direct": world.nodes["a"].public, PROXY: site.proxy_address, "router": world.routers[0]}
    channels = {name: await site.channel(address) for name, address in addresses.items()}

    async def one_round(name: str, method: str, count: int, in_flight: int, _: int) -> Round:
        requests = [_REQUESTS[method](number % SEED_RECORDS) for number in range(count)]
        call = channels[name].multi_callable(path_of(method))
        meter = Meter(site.pids)
        return meter.stop(await run_calls(call, requests, in_flight))

    figures: list[Figure] = []
    for method, in_flight, count in ((GET, 1, 200), (UPDATE, 1, 150), (GET, 16, 640), (UPDATE, 16, 480)):
        contenders: dict[str, Contender] = {
            name: partial(one_round, name, method, count, in_flight) for name in addresses
        }
        found = await alternate(site.pick(8, 4), contenders)
        figures += _figures(f"{method}, {in_flight} in flight", in_flight, found)
    return figures


def _figures(title: str, in_flight: int, found: dict[str, Rounds]) -> list[Figure]:
    direct, proxy, router = found["direct"], found[PROXY], found["router"]
    target = Target(0.9) if in_flight == 1 else None
    return [
        Figure(f"{title}: p50", "ms", router.p50, direct.p50, "direct"),
        Figure(f"{title}: p99", "ms", router.p99, direct.p99, "direct"),
        Figure(f"{title}: calls", "/s", router.per_second, direct.per_second, "direct"),
        Figure(
            f"{title}: the router adds, p50", "ms", router.added_p50(direct), proxy.added_p50(direct), PROXY, target
        ),
        *(
            Figure(
                f"{title}: CPU of {process}", "ms/call", router.cpu_milliseconds(process),
                baseline.cpu_milliseconds(own), name,
            )
            for process, own, baseline, name in (
                ("router-1", PROXY, proxy, PROXY),
                ("a", "a", direct, "direct"),
                ("b-1", "b-1", direct, "direct"),
            )
        ),
    ]  # fmt: skip

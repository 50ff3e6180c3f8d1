"""A read by each protocol, at A and at the router: CPU of the serving process, against the same read by gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import httpx2

from libs.proving.trial.doors import ConnectWay, McpWay, RestWay, Way
from tests.bench.calls import GET, SAYS, get_request, path_of
from tests.bench.measure import Contender, Figure, Meter, Round, Target, alternate
from tests.bench.site import CALL_SECONDS, SEED_RECORDS, Site

CALLS = 200
GRPC, REST = "gRPC", "REST"
TARGET = Target(2.0, of_ratio=True)
"""Target for REST, as a ratio to gRPC."""


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    client = await site.exits.enter_async_context(httpx2.AsyncClient())
    figures: list[Figure] = []
    for process in ("a", "router-1"):
        node = world.nodes[process]
        channel = await site.channel(node.public)
        doors = {name: kind(node.http, client, channel) for name, kind in _DOORS.items()}
        ways: dict[str, Way] = {GRPC: channel, **doors}
        contenders: dict[str, Contender] = {name: partial(_round, site, way) for name, way in ways.items()}
        found = await alternate(site.pick(8, 4), contenders)
        bare = found[GRPC]
        for name in doors:
            title = f"{GET} at {process} by {name}"
            cost, of = found[name].cpu_milliseconds(process), bare.cpu_milliseconds(process)
            figures.append(Figure(f"{title}: CPU", "ms/call", cost, of, GRPC, TARGET if name == REST else None))
            figures.append(Figure(f"{title}: p50", "ms", found[name].p50, bare.p50, GRPC))
    return figures


_DOORS: dict[str, Callable[..., Way]] = {REST: RestWay, "Connect": ConnectWay, "MCP": McpWay}


async def _round(site: Site, way: Way, _: int) -> Round:
    call = way.multi_callable(path_of(GET))
    requests = [get_request(number % SEED_RECORDS) for number in range(CALLS)]
    meter = Meter(site.pids)
    milliseconds: list[float] = []
    for request in requests:
        began = time.perf_counter()
        await call(request, timeout=CALL_SECONDS, metadata=SAYS)
        milliseconds.append((time.perf_counter() - began) * 1000)
    return meter.stop(milliseconds)

"""Calls per second through a router with two workers, against one worker.

Client, stores and routers share the machine's cores, so a second worker shows only with more than two of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Sequence
from functools import partial

from libs.proving.servers.ports import free_port
from libs.rpc.channel import RawCallable
from tests.bench.calls import GET, get_request, path_of, run_calls
from tests.bench.measure import Figure, Meter, Round, alternate
from tests.bench.site import SEED_RECORDS, Site

CONNECTIONS = 8
IN_FLIGHT = 4
"""Calls in flight on each connection."""
CALLS = 100
"""Calls of each connection in a round."""
_WORKERS = (1, 2)


async def measure(site: Site) -> list[Figure]:
    calls = {workers: await _start(site, workers) for workers in _WORKERS}
    try:
        found = await alternate(
            site.pick(8, 4), {str(workers): partial(_round, site, calls[workers]) for workers in _WORKERS}
        )
    finally:
        for workers in _WORKERS:
            await site.end(_name(workers))
    one, two = (found[str(workers)] for workers in _WORKERS)
    title = (
        f"{GET}, {CONNECTIONS} connections, {CONNECTIONS * IN_FLIGHT} in flight: 2 workers on {os.cpu_count()} cores"
    )
    return [
        Figure(f"{title}, calls", "/s", two.per_second, one.per_second, "1 worker"),
        Figure(f"{title}, p50", "ms", two.p50, one.p50, "1 worker"),
    ]


def _name(workers: int) -> str:
    return f"router of {workers}"


async def _start(site: Site, workers: int) -> Sequence[RawCallable]:
    """A router with this many workers on the system's stores. Returns a callable for each of its connections."""
    world = await site.world()
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "public": address,
        "control": f"127.0.0.1:{free_port()}",
        "http": "",
        "name": _name(workers).replace(" ", "-"),
    }
    command = world.nodes["router-1"].process.command
    env = {**(command.env or {}), **{f"BATON_ROUTER_{name}".upper(): value for name, value in settings.items()}}
    program = [sys.executable, "-u", "-m", "services.router", "--workers", str(workers)]
    await site.start_program(_name(workers), program, address, **env)
    channels = [await site.channel(address) for _ in range(CONNECTIONS)]
    return [channel.multi_callable(path_of(GET)) for channel in channels]


async def _round(site: Site, calls: Sequence[RawCallable], _: int) -> Round:
    numbers = itertools.count()
    requests = [[get_request(next(numbers) % SEED_RECORDS) for _ in range(CALLS)] for _ in calls]
    meter = Meter(site.pids)
    found = await asyncio.gather(
        *(run_calls(call, mine, IN_FLIGHT) for call, mine in zip(calls, requests, strict=True))
    )
    return meter.stop([one for milliseconds in found for one in milliseconds])

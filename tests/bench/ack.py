"""Writes that are acknowledged once their event is in the log, against the same writes acknowledged at commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import grpc

from libs.rpc import metadata
from libs.rpc.channel import RawCallable
from tests.bench.calls import SAYS, UPDATE, path_of, update_request
from tests.bench.measure import Contender, Figure, Meter, Round, alternate
from tests.bench.site import CALL_SECONDS, SEED_RECORDS, Site

COMMITTED = "committed"
ACKS: dict[str, tuple[tuple[str, str], ...]] = {
    COMMITTED: (),
    metadata.LOGGED: ((metadata.ACK, metadata.LOGGED),),
}


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    # The router's relay publishes the events; this process calls A as a router would.
    channel = await site.channel(world.nodes["a"].private)
    call = channel.multi_callable(path_of(UPDATE))

    async def one_round(ack: str, count: int, in_flight: int, _: int) -> Round:
        requests = iter([update_request(number % SEED_RECORDS) for number in range(count)])
        sent = ((metadata.TOKEN, world.token), *SAYS, *ACKS[ack])
        meter = Meter(site.pids)
        workers = (_calls(call, requests, sent) for _ in range(in_flight))
        return meter.stop([one for some in await asyncio.gather(*workers) for one in some])

    figures: list[Figure] = []
    for in_flight, count in ((1, 100), (16, 640), (128, 1920)):
        contenders: dict[str, Contender] = {ack: partial(one_round, ack, count, in_flight) for ack in ACKS}
        found = await alternate(site.pick(6, 3), contenders)
        logged, committed = found[metadata.LOGGED], found[COMMITTED]
        name = f"{UPDATE} at A, logged, {in_flight} in flight"
        figures += [
            Figure(f"{name}: p50", "ms", logged.p50, committed.p50, COMMITTED),
            Figure(f"{name}: p99", "ms", logged.p99, committed.p99, COMMITTED),
            Figure(f"{name}: calls", "/s", logged.per_second, committed.per_second, COMMITTED),
        ]
    return figures


async def _calls(call: RawCallable, requests: Iterator[bytes], sent: tuple[tuple[str, str], ...]) -> list[float]:
    """Milliseconds per call."""
    milliseconds: list[float] = []
    for request in requests:
        began = time.perf_counter()
        await call(request, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata(*sent))
        milliseconds.append((time.perf_counter() - began) * 1000)
    return milliseconds

"""Answers that a caller does not take: it grants no room for them by HTTP/2's flow control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2

from libs.rpc import gate, standard
from libs.rpc.callers import CallerLimits
from libs.rpc.channel import open_channel
from libs.rpc.errors import Context, reason_of
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig
from tests.greedy import greedy
from tests.unit.test_rpc_limits import BOUND_SECONDS
from tests.waiting import eventually

SERVICE = "test.Service"
ECHO, LARGE, WATCH = (f"/{SERVICE}/{method}" for method in ("Echo", "Large", "Watch"))
CHECK = "/grpc.health.v1.Health/Check"
LARGE_BYTES = 600_000


async def _echo(request: bytes, context: Context) -> bytes:
    return request


async def _large(request: bytes, context: Context) -> bytes:
    return b"x" * LARGE_BYTES


async def _watch(request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
    yield request
    await asyncio.Event().wait()


@asynccontextmanager
async def listening(caller: CallerLimits | None = None) -> AsyncIterator[Server]:
    limits = ServerLimits(8, streams=4, caller=caller or CallerLimits(share=0.5))
    service = RawService(SERVICE, {"Echo": _echo, "Large": _large}, {"Watch": _watch})
    server = Server(ServerConfig("127.0.0.1:0", "public", limits), [service])
    await server.start()
    try:
        yield server
    finally:
        await server.drain(1.0)


async def answered(address: str, path: str = ECHO) -> str:
    """ "OK", or the reason of the refusal, for a caller of the same host."""
    async with open_channel(address) as channel:
        try:
            await channel.multi_callable(path)(b"", timeout=BOUND_SECONDS)
        except grpc.aio.AioRpcError as error:
            return reason_of(error)[0]
    return "OK"


async def test_a_caller_has_a_limited_number_of_answers_that_it_has_not_taken() -> None:
    async with listening() as server, greedy(server.address) as client:
        begun = []
        for count in range(1, 9):
            begun.append(await client.call(ECHO, b"x"))
            await eventually(partial(_has_untaken, server, count))
        # Each further call ends at once, with a status that needs no room.
        more = [await client.call(ECHO, b"x") for _ in range(12)]
        await eventually(lambda: client.ended == {*more})
        assert server.in_flight == 0
        assert await answered(server.address) == "LIMIT_ANSWERS"
        assert server.gate.refused["LIMIT_ANSWERS"] == 13
        await client.grant()
        await eventually(lambda: client.ended == {*begun, *more})

        async def served() -> bool:
            return await answered(server.address) == "OK"

        await eventually(served)


async def test_answers_that_a_caller_has_not_taken_are_limited_in_bytes_together() -> None:
    async with listening(CallerLimits(request_bytes=2 * LARGE_BYTES)) as server, greedy(server.address) as client:
        for count in (1, 2, 3):
            await client.call(LARGE, b"x")
            await eventually(partial(_has_untaken, server, count))
        refused = await client.call(LARGE, b"x")
        await eventually(lambda: client.ended == {refused})
        assert await answered(server.address) == "LIMIT_ANSWERS"


async def test_the_answers_of_a_connection_that_is_gone_are_no_longer_counted() -> None:
    async with listening() as server:
        async with greedy(server.address) as client:
            for count in range(1, 9):
                await client.call(ECHO, b"x")
                await eventually(partial(_has_untaken, server, count))
            assert await answered(server.address) == "LIMIT_ANSWERS"

        async def served() -> bool:
            return await answered(server.address) == "OK"

        await eventually(served)


async def test_streams_whose_end_is_not_taken_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WRITE_SECONDS", 0.1)
    async with listening() as server, greedy(server.address) as client:
        for number in range(8):
            await client.call(WATCH, b"x")
            # Its answer was not taken, so it has ended and left its place.
            await eventually(partial(_has_untaken, server, number + 1))
        assert server.gate.streams == 0
        assert await answered(server.address) == "LIMIT_ANSWERS"


async def test_a_host_that_takes_no_answer_of_health_is_refused_and_keeps_no_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standard, "UNENDED", 5)
    async with listening() as server, greedy(server.address) as client:
        begun = [await client.call(CHECK, health_pb2.HealthCheckRequest().SerializeToString()) for _ in range(12)]
        await eventually(lambda: len(client.ended) == 7)
        assert await answered(server.address, CHECK) == "OVERLOADED"
        await client.grant()
        await eventually(lambda: client.ended == {*begun})

        async def served() -> bool:
            return await answered(server.address, CHECK) == "OK"

        await eventually(served)


def _has_untaken(server: Server, count: int) -> bool:
    return sum(caller.untaken for caller in server.gate.callers._known.values()) == count

"""A listener that drains, and one that is flooded, under the calls of plain gRPC clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.rpc import goaway
from libs.rpc.channel import Channel, RawCallable, open_channel
from libs.rpc.errors import DETAILS_KEY, Context
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig
from tests.waiting import eventually

ECHO = "/test.Service/Echo"
CALLERS = 20
FLOOD = 2000


async def echo(request: bytes, context: Context) -> bytes:
    await asyncio.sleep(0)
    return request


async def started() -> Server:
    server = Server(ServerConfig("127.0.0.1:0", "public"), [RawService("test.Service", {"Echo": echo})])
    await server.start()
    return server


class Callers:
    """Clients of one plain channel, each with one call at a time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: RawCallable = channel.unary_unary(ECHO)
        self.ended: Counter[str] = Counter()
        self.stop = False

    async def run(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(CALLERS)))

    async def _one(self) -> None:
        while not self.stop:
            try:
                await self._call(b"x", timeout=5)
            except grpc.aio.AioRpcError as error:
                self.ended[f"{error.code().name}: {error.details()}"] += 1
            else:
                self.ended["OK"] += 1


@asynccontextmanager
async def calling(*servers: Server) -> AsyncIterator[Callers]:
    target = "ipv4:" + ",".join(server.address for server in servers)
    options = (("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),)
    async with grpc.aio.insecure_channel(target, options) as channel:
        callers = Callers(channel)
        task = asyncio.create_task(callers.run())
        try:
            yield callers
        finally:
            callers.stop = True
            await task


async def test_a_drain_under_load_fails_no_call_of_a_client_with_another_address() -> None:
    stays = await started()
    for _ in range(5):
        assert list(await drained_under_load(stays)) == ["OK"]
    await stays.drain(1.0)


async def drained_under_load(stays: Server) -> Counter[str]:
    """How the calls of clients with two addresses ended while the listener at one of them drained."""
    leaves = await started()
    async with calling(stays, leaves) as callers:
        await eventually(lambda: leaves.in_flight > 0 and stays.in_flight > 0)
        assert await leaves.drain(10.0) == 0
        answered = callers.ended["OK"]
        await eventually(lambda: callers.ended["OK"] > answered + CALLERS)
    return callers.ended


async def test_health_reports_the_drain_before_clients_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    refuse = goaway.refuse_connections

    def noted(port: int) -> None:
        seen.append("connections refused")
        refuse(port)

    monkeypatch.setattr(goaway, "refuse_connections", noted)
    server = await started()
    async with open_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel.grpc)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.create_task(server.drain(10.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        seen.insert(0, "NOT_SERVING")
        await draining
    assert seen == ["NOT_SERVING", "connections refused"]


async def test_a_client_that_keeps_its_connection_does_not_hold_a_drain_up() -> None:
    server = await started()
    async with open_channel(server.address) as channel:
        kept = channel.multi_callable(ECHO)(b"x")
        await kept
        async with asyncio.timeout(10):
            assert await server.drain(60.0) == 0
        assert await kept.code() is grpc.StatusCode.OK


@pytest.mark.slow
async def test_each_call_of_a_flood_is_answered_or_refused_with_a_reason_and_a_delay() -> None:
    open_gate = asyncio.Event()

    async def held(request: bytes, context: Context) -> bytes:
        await open_gate.wait()
        return request

    limits = ServerLimits(calls=16, default_deadline_seconds=30.0)
    server = Server(ServerConfig("127.0.0.1:0", "public", limits), [RawService("test.Service", {"Echo": held})])
    await server.start()
    ended: Counter[str] = Counter()

    async def one(channel: Channel) -> None:
        try:
            await channel.multi_callable(ECHO)(b"x", timeout=30)
        except grpc.aio.AioRpcError as error:
            ended[f"{error.code().name} {reasons(error)}"] += 1
        else:
            ended["OK"] += 1

    async with open_channel(server.address) as first, open_channel(server.address) as second:
        flood = asyncio.gather(*(one((first, second)[number % 2]) for number in range(FLOOD)))
        await eventually(lambda: ended.total() == FLOOD - 16, 30)
        open_gate.set()
        await flood
    assert ended == {"OK": 16, "RESOURCE_EXHAUSTED ['OVERLOADED', 'RetryInfo']": FLOOD - 16}
    await server.drain(1.0)


def reasons(error: grpc.aio.AioRpcError) -> list[str]:
    """The reason of an error and whether it says when to try again."""
    value = dict(error.trailing_metadata() or ()).get(DETAILS_KEY, b"")
    assert isinstance(value, bytes)
    return [_shown(detail) for detail in status_pb2.Status.FromString(value).details]


def _shown(detail: any_pb2.Any) -> str:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        return str(info.reason)
    return "RetryInfo" if detail.Unpack(retry) and retry.retry_delay.ToMilliseconds() else str(detail.type_url)

"""MCP over standard input and output, for programs that start their own servers: the same tools as over HTTP, with
calls sent to a Baton process by gRPC.

Records have the newest schema version, whatever the target's default is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from mcp.server.stdio import stdio_server

from libs.contract.descriptors import Contract, Method
from libs.contract.schemas import NEWEST
from libs.errors import BatonError
from libs.http.call import DoorCall, Ended
from libs.http.forms import Forms
from libs.http.mcp_server import McpServer
from libs.identity.port import AUTHORIZATION
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import Pairs, reason_of
from libs.tls.process import ClientTls

CALL_SECONDS = 10.0
REACH_SECONDS = 5.0
CLIENT = "baton mcp"


class TargetAway(BatonError):
    """The target does not answer."""

    code = "UNAVAILABLE"
    reason = "TARGET_AWAY"
    retry_seconds = 1.0

    def __init__(self, target: str) -> None:
        super().__init__(f"{target} does not answer: start A, B or a router there, or give its gRPC address")


class GrpcCaller:
    """Calls of MCP requests over stdio, at one target."""

    def __init__(self, contract: Contract, channel: Channel, token: Callable[[], str] = str) -> None:
        """`token`: returns the caller's token of this moment; "" if it has none. Raises BatonError."""
        self.contract = contract
        self.forms = Forms(contract)
        self._channel = channel
        self._token = token
        versions = contract.schemas
        version = ((versions.metadata, str(versions.newest)),) if versions.metadata else ()
        self._metadata: Pairs = ((metadata.CLIENT, CLIENT), *version)

    def open(self, request: Any, read: Callable[[], Awaitable[bytes]]) -> DoorCall:
        token = self._token()
        shown = ((AUTHORIZATION, f"Bearer {token}"),) if token else ()
        return DoorCall((*self._metadata, *shown), "stdio", read, CALL_SECONDS)

    def schema(self, pairs: Pairs) -> int:
        return self.contract.schemas.asked(pairs, NEWEST)

    def answered(self, request: Any, call: DoorCall) -> None:
        """The result itself carries the metadata."""

    async def answer(self, method: Method, call: DoorCall) -> bytes:
        request = await call.read()
        sent = grpc.aio.Metadata(*call.invocation_metadata())
        running = self._channel.multi_callable(method.path)(request, timeout=call.time_remaining(), metadata=sent)
        try:
            answer = await running
            call.initial = tuple(await running.initial_metadata() or ())
            call.trailers = tuple(await running.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            call.initial = tuple(error.initial_metadata() or ())
            call.trailers = tuple(error.trailing_metadata() or ())
            reason, _ = reason_of(error)
            if not reason and error.code() is grpc.StatusCode.UNAVAILABLE:
                raise TargetAway(self._channel.address) from None
            raise Ended(error.code(), error.details() or error.code().name, call.trailers) from None
        return answer


async def _reach(channel: Channel) -> None:
    """Connect. Raises TargetAway if the target's machine refuses the connection."""
    state = channel.grpc.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise TargetAway(channel.address)
        await channel.grpc.wait_for_state_change(state)
        state = channel.grpc.get_state(try_to_connect=True)


async def serve_stdio(
    contract: Contract, target: str, tls: ClientTls | None = None, token: Callable[[], str] = str
) -> None:
    """Serve until standard input ends. Raises TargetAway if the target cannot be reached at the start.

    `token`: as for `GrpcCaller`."""
    async with open_channel(target, tls) as channel:
        try:
            async with asyncio.timeout(REACH_SECONDS):
                await _reach(channel)
        except TimeoutError:
            raise TargetAway(target) from None
        server = McpServer(GrpcCaller(contract, channel, token)).sdk
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

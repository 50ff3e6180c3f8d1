"""A proxy of bytes between a router and a store that fails a share of the calls, some before and some after the store
has carried them out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import Context, own_metadata, pass_on
from libs.rpc.server import OPTIONS

DEFAULT_SECONDS = 10.0


class FaultProxy(grpc.GenericRpcHandler):
    """While `share` is above 0, that share of all calls ends with INTERNAL."""

    def __init__(self, address: str, target: Channel, seed: int = 4) -> None:
        self.address = address
        self.share = 0.0
        self.calls = 0
        self.failed = 0
        self._target = target
        self._chance = random.Random(seed)

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method

        async def handle(request: bytes, context: Context) -> bytes:
            return await self._pass(method, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _pass(self, method: str, request: bytes, context: Context) -> bytes:
        self.calls += 1
        fails, is_late = self._chance.random() < self.share, self._chance.random() < 0.5
        if fails and not is_late:
            await self._fail(context)
        given = grpc.aio.Metadata(*own_metadata(context.invocation_metadata()))
        timeout = context.time_remaining() or DEFAULT_SECONDS
        call = self._target.multi_callable(method)(request, timeout=timeout, metadata=given)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            return await pass_on(context, error)
        context.set_trailing_metadata(own_metadata(await call.trailing_metadata()))
        if fails:
            await self._fail(context)
        return answer

    async def _fail(self, context: Context) -> None:
        self.failed += 1
        await context.abort(grpc.StatusCode.INTERNAL, "a planted fault")


@asynccontextmanager
async def fault_proxy(address: str, target: str) -> AsyncIterator[FaultProxy]:
    """Listens on `address` and passes on to `target`, both host:port."""
    server = grpc.aio.server(options=OPTIONS)
    async with open_channel(target) as channel:
        proxy = FaultProxy(address, channel)
        server.add_generic_rpc_handlers((proxy,))
        server.add_insecure_port(address)
        await server.start()
        try:
            yield proxy
        finally:
            await asyncio.shield(asyncio.ensure_future(server.stop(0.2)))

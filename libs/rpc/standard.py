# ruff: noqa: N802 - the methods are named as in the .proto.
"""Health, which every listener serves without a token.

Watches of health may stay as long as they like, so their number is limited. A drain ends them; otherwise each would
delay it to its time limit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from libs.contract.requests import parse_request
from libs.errors import InvalidField, Overloaded
from libs.rpc.callers import host_of
from libs.rpc.errors import Context, abort
from libs.rpc.slots import release_slot

WATCHES = 64
"""Maximum number of health watches at one listener."""
CONNECTION_WATCHES = 8
"""Maximum number of them on one connection."""

_LAST_ANSWERS_SECONDS = 0.25


class Shares:
    """A limit for streams that every caller may open: in total, per host (half of them) and per connection."""

    def __init__(self, most: int, by_connection: int) -> None:
        self._most = most
        self._by_host = most // 2
        self._by_connection = by_connection
        self._of: Counter[str] = Counter()
        self._of_hosts: Counter[str] = Counter()

    @asynccontextmanager
    async def one(self, context: Context) -> AsyncIterator[None]:
        """Hold a share. Ends the call with OVERLOADED if none is left."""
        peer = context.peer()
        host = host_of(peer)
        if (
            self._of.total() >= self._most
            or self._of_hosts[host] >= self._by_host
            or self._of[peer] >= self._by_connection
        ):
            await abort(context, Overloaded())
        self._of[peer] += 1
        self._of_hosts[host] += 1
        try:
            yield
        finally:
            release_slot(self._of, peer)
            release_slot(self._of_hosts, host)


class Health(health.aio.HealthServicer):
    """Health that keeps track of its watches."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()
        self._shares = Shares(WATCHES, CONNECTION_WATCHES)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        async with self._shares.one(context):
            await self._watch(request, context)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
            if not watch.cancelled():
                watch.result()
        finally:
            watch.cancel()
            self._watches.discard(watch)

    async def end_watches(self) -> None:
        """End all watches, after they had time to send the last status."""
        if self._watches:
            await asyncio.wait(self._watches, timeout=_LAST_ANSWERS_SECONDS)
        for watch in self._watches:
            watch.cancel()


def handlers(servicer: Health) -> grpc.GenericRpcHandler:
    """Handlers of Check and Watch. The generated handlers answer malformed requests with UNKNOWN, and log a stack trace
    for each."""
    answer = health_pb2.HealthCheckResponse.SerializeToString
    methods: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(_parsed(servicer.Check), response_serializer=answer),
        "Watch": grpc.unary_stream_rpc_method_handler(_parsed(servicer.Watch), response_serializer=answer),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)


def _parsed(
    method: Callable[[health_pb2.HealthCheckRequest, Context], Awaitable[Any]],
) -> Callable[[bytes, Context], Awaitable[Any]]:
    async def call(data: bytes, context: Context) -> Any:
        try:
            request = parse_request(health_pb2.HealthCheckRequest, data)
        except InvalidField as error:
            await abort(context, error)
        return await method(request, context)

    return call

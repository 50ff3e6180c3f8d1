# ruff: noqa: N802 - the methods are named as in the .proto.
"""Health, which every listener serves without a token.

Watches of health may stay as long as they like, so their number is limited. A drain ends them; otherwise each would
delay it to its time limit.

A call whose request does not arrive occupies one of the calls that gRPC admits in total, and so could keep every caller
out. So the methods are registered as ones that take a stream, as those of the gate are, and read the request within
limits (`Requests`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from libs.contract.requests import parse_request
from libs.errors import BatonError, Overloaded
from libs.rpc.bodies import body_of
from libs.rpc.callers import host_of
from libs.rpc.errors import Context, DeadlineExceeded, abort
from libs.rpc.slots import release_slot, take_slot

WATCHES = 64
"""Maximum number of health watches at one listener."""
CONNECTION_WATCHES = 8
"""Maximum number of them on one connection."""

REQUESTS = 256
"""Maximum number of calls at one listener whose request has not arrived; one host may have half of them."""
UNENDED = 1024
"""Maximum number of health checks of one host at one listener that have not ended. Most wait for a client that does not
read its answer.
"""
REQUEST_SECONDS = 5.0
"""Time for a request to arrive."""

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


class Unended:
    """Calls of each host that gRPC has not ended. An answer whose caller grants no room stays, and occupies one of
    the calls that gRPC admits in total."""

    def __init__(self, most_of_host: int) -> None:
        self._most = most_of_host
        self._of: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Unended {sum(self._of.values())}>"

    async def add(self, context: Context) -> None:
        """Count the running call until its end is sent. Ends it with OVERLOADED, which needs no room, if its host has
        too many."""
        host = host_of(context.peer())
        if self._of.get(host, 0) >= self._most:
            await abort(context, Overloaded())
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task, which ends when its answer is sent"
        take_slot(self._of, host)
        task.add_done_callback(lambda _: release_slot(self._of, host))


class Requests:
    """The calls that wait for their request.

    An honest caller sends the request with the headers. So a new call is always admitted: beyond the limit, the oldest
    call of its host ends, or the oldest of all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = most // 2
        self._waiting: dict[asyncio.Timeout, str] = {}
        """Hosts by the time limit of their call, oldest first."""
        self._of: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Requests waiting={len(self._waiting)}>"

    @asynccontextmanager
    async def one(self, context: Context) -> AsyncIterator[None]:
        """Wait in the block. Raises DeadlineExceeded."""
        host = host_of(context.peer())
        self._make_room(host)
        try:
            async with asyncio.timeout(REQUEST_SECONDS) as limit:
                self._waiting[limit] = host
                take_slot(self._of, host)
                try:
                    yield
                finally:
                    self._forget(limit)
        except TimeoutError:
            raise DeadlineExceeded("the request did not arrive in time") from None

    def _make_room(self, host: str) -> None:
        own = self._of.get(host, 0) >= self._most_of_one
        if own or len(self._waiting) >= self._most:
            oldest = next(limit for limit, one in self._waiting.items() if one == host or not own)
            self._forget(oldest)
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())

    def _forget(self, limit: asyncio.Timeout) -> None:
        host = self._waiting.pop(limit, None)
        if host is not None:
            release_slot(self._of, host)


class Health(health.aio.HealthServicer):
    """Health that keeps track of its watches."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Requests(REQUESTS)
        self.unended = Unended(UNENDED)
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
    """Handlers of Check and Watch. The generated handlers answer malformed requests with UNKNOWN, log a stack trace for
    each, and wait for a request without end."""
    answer = health_pb2.HealthCheckResponse.SerializeToString
    methods: dict[str, Any] = {
        "Check": grpc.stream_unary_rpc_method_handler(partial(_check, servicer), response_serializer=answer),
        "Watch": grpc.stream_stream_rpc_method_handler(partial(_watch, servicer), response_serializer=answer),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)


async def _check(servicer: Health, _: object, context: Context) -> health_pb2.HealthCheckResponse:
    await servicer.unended.add(context)
    return await servicer.Check(await _request(servicer, context), context)


async def _watch(servicer: Health, _: object, context: Context) -> None:
    await servicer.Watch(await _request(servicer, context), context)


async def _request(servicer: Health, context: Context) -> health_pb2.HealthCheckRequest:
    try:
        async with servicer.requests.one(context):
            data = body_of(await context.read())
        return parse_request(health_pb2.HealthCheckRequest, data)
    except BatonError as error:
        await abort(context, error)

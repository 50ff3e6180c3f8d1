# ruff: noqa: N802 - the methods are named as in the .proto.
"""Health and reflection, which every listener serves. Their clients may stay for as long as they like; they are ended
when a listener drains, else each of them would hold it open to the end of its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from libs.rpc.errors import Context

_LAST_ANSWERS_SECONDS = 0.25


class Health(health.aio.HealthServicer):
    """Keeps its watchers together."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
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
        """When they have been told the last."""
        if self._watches:
            await asyncio.wait(self._watches, timeout=_LAST_ANSWERS_SECONDS)
        for watch in self._watches:
            watch.cancel()


class Reflection(reflection.aio.ReflectionServicer):
    """Takes no more questions after its end."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._ended = asyncio.Event()

    async def ServerReflectionInfo(  # type: ignore[override]  # its stub knows no generators
        self, requests: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        answered: Any = super().ServerReflectionInfo(self._until_ended(requests), context)
        async for answer in answered:
            yield answer

    async def _until_ended(self, requests: Any) -> AsyncGenerator[Any, None]:
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            while True:
                request = asyncio.ensure_future(anext(requests))
                await asyncio.wait([request, ended], return_when=asyncio.FIRST_COMPLETED)
                if not request.done():
                    request.cancel()
                    return
                try:
                    yield request.result()
                except StopAsyncIteration:
                    return
        finally:
            ended.cancel()

    def end(self) -> None:
        self._ended.set()

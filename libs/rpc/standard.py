# ruff: noqa: N802 - the methods are named as in the .proto.
"""Health, which every listener serves. Its watchers may stay for as long as they like; they are ended when a listener
drains, else each of them would hold it open to the end of its time."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health, health_pb2

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

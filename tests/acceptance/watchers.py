"""Clients that watch, and keep their view and all that was odd about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import WatchSandboxesRequest, WatchSandboxesResponse
from libs.rpc.channel import Channel
from tests.acceptance.talk import NEWEST

PATH = "/sandbox.v1.SandboxService/WatchSandboxes"
AGAIN_SECONDS = 0.1


@dataclass
class Watcher:
    """Calls again with the newest token when a server ends the watch."""

    channel: Channel
    request: WatchSandboxesRequest
    view: dict[str, Sandbox] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    """Versions that went back within a view."""
    answers: int = 0
    resets: int = 0
    ends: list[str] = field(default_factory=list)
    synced: bool = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._watch()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.ends.append(error.details() or "")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _watch(self) -> None:
        stream = self.channel.stream_callable(PATH)(
            self.request.SerializeToString(), metadata=grpc.aio.Metadata(*NEWEST)
        )
        try:
            while isinstance(data := await stream.read(), bytes):
                self._take(WatchSandboxesResponse.FromString(data))
        finally:
            stream.cancel()

    def _take(self, answer: WatchSandboxesResponse) -> None:
        self.answers += 1
        if answer.reset:
            self.resets += 1
            self.view.clear()
        for sandbox in answer.sandboxes:
            before = self.view.get(sandbox.name)
            if before is not None and before.revision > sandbox.revision:
                self.odd.append(f"{sandbox.name}: {sandbox.revision} after {before.revision}")
            self.view[sandbox.name] = sandbox
        for name in answer.removed:
            self.view.pop(name, None)
        self.request.resume_token = answer.resume_token
        self.synced = answer.synced


@asynccontextmanager
async def watching(channel: Channel, *, show_deleted: bool = True) -> AsyncIterator[Watcher]:
    """Watch until the end of the block, which raises the error that ended the watch."""
    watcher = Watcher(channel, WatchSandboxesRequest(show_deleted=show_deleted))
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure

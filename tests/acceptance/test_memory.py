"""Requests, and answers that clients do not read, leave the memory of real processes bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.trial.world import Size, World
from libs.rpc.channel import Channel, open_channel
from libs.rpc.errors import reason_of
from tests.acceptance.talk import COLLECTION, create

MOST_BYTES = 300 * 2**20
"""Highest resident memory of one process. A fresh one has about 90 MB."""
CALL_SECONDS = 30.0
SERVICE = "/sandbox.v1.SandboxService"
ENDPOINTS = ("router-1", "a")


@pytest.fixture
async def world(tmp_path: Path) -> World:
    # All clients of these tests come from one host.
    return World.embedded(tmp_path / "world", size=Size(router_settings=({"caller_percent": "100"},)))


def peak_bytes(world: World, name: str) -> int:
    """The highest resident memory since the process began: the memory at the end may be that of a lucky moment."""
    pid = world.nodes[name].process.pid
    assert pid is not None, f"{name} runs"
    (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) * 1024


def assert_bounded(world: World) -> None:
    found = {name: peak_bytes(world, name) for name in ("router-1", "a", "b-1")}
    print({name: f"{size / 2**20:.0f} MB" for name, size in found.items()})
    assert all(size < MOST_BYTES for size in found.values()), found


async def refused(call: Awaitable[Any]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, reason_of(caught.value)[0]


async def test_refused_requests_are_not_kept(world: World) -> None:
    async with world.running():
        for name in ENDPOINTS:
            async with open_channel(world.nodes[name].public) as channel:
                await _send_what_is_refused(channel)
        assert_bounded(world)


async def _send_what_is_refused(channel: Channel) -> None:
    make: Any = channel.grpc.unary_unary(f"{SERVICE}/CreateSandbox")
    for _ in range(30):
        # 15 KB on the wire, 15 MiB when it is unpacked.
        call = make(bytes(15 << 20), compression=grpc.Compression.Gzip, timeout=CALL_SECONDS)
        assert (await refused(call))[0] == "RESOURCE_EXHAUSTED"
    stub: Any = SandboxServiceStub(channel.grpc)
    request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=COLLECTION + "none", annotations={"a": "x" * 1_000_000}))
    request.update_mask.paths.append("annotations")
    for _ in range(40):
        calls = [refused(stub.UpdateSandbox(request, timeout=CALL_SECONDS)) for _ in range(10)]
        assert set(await asyncio.gather(*calls)) == {("INVALID_ARGUMENT", "INVALID_FIELD")}


async def test_watches_of_many_clients_share_a_bounded_memory(world: World) -> None:
    async with world.running(), AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(world.routers[0])) for _ in range(4)]
        readers = [asyncio.create_task(_read(channel)) for channel in channels for _ in range(40)]
        # As many that never read.
        idle = [_watch(channel) for channel in channels for _ in range(20)]
        try:
            await _write_large(channels[0], 60)
            assert_bounded(world)
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            for stream in idle:
                stream.cancel()


async def _write_large(channel: Channel, writes: int) -> None:
    stub: Any = SandboxServiceStub(channel.grpc)
    large = {f"note-{number}": "x" * 20_000 for number in range(10)}
    names: Sequence[str] = [f"large-{number:02}" for number in range(10)]
    for name in names:
        await stub.CreateSandbox(create(name, annotations=large), timeout=CALL_SECONDS)
    for number in range(writes):
        name = COLLECTION + names[number % len(names)]
        request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=name, annotations={**large, "n": str(number)}))
        request.update_mask.paths.append("annotations")
        await stub.UpdateSandbox(request, timeout=CALL_SECONDS)


def _watch(channel: Channel) -> Any:
    stub: Any = SandboxServiceStub(channel.grpc)
    return stub.WatchSandboxes(pb.WatchSandboxesRequest())


async def _read(channel: Channel) -> None:
    """Reads all that comes, and watches again when it is ended."""
    token = ""
    stub: Any = SandboxServiceStub(channel.grpc)
    while True:
        try:
            async for step in stub.WatchSandboxes(pb.WatchSandboxesRequest(resume_token=token)):
                token = step.resume_token or token
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)

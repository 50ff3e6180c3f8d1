"""Two routers on one port: clients, kills, and the end, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import pytest

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.servers import tree
from libs.proving.servers.ports import free_port
from libs.proving.trial.world import Size, World
from libs.rpc.channel import open_channel
from tests.system.store import new
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

pytestmark = pytest.mark.slow

BOUND_SECONDS = 60.0
WRITES = 60
_ESTABLISHED = "01"


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[World]:
    """All listeners are shared by both workers."""
    more = {name: f"127.0.0.1:{free_port()}" for name in ("internal", "xds")}
    world = World.embedded(directory, size=Size(workers=2, http=True, router_settings=(more,)))
    async with world.running():
        yield world


def workers_of(world: World) -> list[int]:
    pid = world.nodes["router-1"].process.pid
    return [] if pid is None else sorted(one.pid for one in tree.descendants(pid))


def connections(pid: int, address: str) -> int:
    """Number of a process's connections with this local address."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if local.endswith(f":{port}") and state == _ESTABLISHED:
                inodes.add(f"socket:[{rest[5]}]")
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{name}") in inodes
    return found


async def written(client: SandboxServiceAsyncStub, number: int) -> None:
    """Create a sandbox. A call that fails is repeated with the same request_id."""
    request = new(f"n{number}", request_id=str(uuid4()))

    async def done() -> bool:
        try:
            await client.CreateSandbox(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    await eventually(done, BOUND_SECONDS)


async def test_two_workers_serve_one_port_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as world, AsyncExitStack() as stack:
        address = world.routers[0]
        first, second = workers_of(world)
        clients: list[SandboxServiceAsyncStub] = []

        async def each_has_a_connection() -> bool:
            channel = await stack.enter_async_context(open_channel(address))
            clients.append(SandboxServiceStub(channel.grpc))
            await written(clients[-1], -len(clients))
            return bool(connections(first, address) and connections(second, address))

        await eventually(each_has_a_connection, BOUND_SECONDS)
        half_done = asyncio.Event()

        async def write(number: int) -> None:
            await written(clients[number % len(clients)], number)
            if number >= WRITES // 2:
                half_done.set()

        async def kill() -> None:
            await half_done.wait()
            os.kill(first, signal.SIGKILL)

        killing = asyncio.create_task(kill())
        for start in range(0, WRITES, 4):
            await asyncio.gather(*(write(number) for number in range(start, start + 4)))
        await killing
        for number in range(WRITES):
            found = await clients[0].GetSandbox(pb.GetSandboxRequest(name=f"sandboxes/n{number}"), timeout=10)
            assert found.revision == 1
        # The killed one comes back, and takes connections again.
        await eventually(lambda: len(workers_of(world)) == 2 and first not in workers_of(world), BOUND_SECONDS)
        (again,) = set(workers_of(world)) - {second}
        clients.clear()

        async def it_has_a_connection() -> bool:
            channel = await stack.enter_async_context(open_channel(address))
            await written(SandboxServiceStub(channel.grpc), WRITES + len(clients))
            clients.append(SandboxServiceStub(channel.grpc))
            return bool(connections(again, address))

        await eventually(it_has_a_connection, BOUND_SECONDS)


async def test_a_supervisor_ends_with_all_its_workers(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        node = world.nodes["router-1"]
        drained = workers_of(world)
        await world.stop("router-1")
        assert node.process.exit_code == 0
        assert not [pid for pid in drained if tree.find(pid)]
        await world.start("router-1")
        supervisor, left = node.process.pid, workers_of(world)
        assert supervisor is not None and len(left) == 2
        world._wanted.discard("router-1")
        os.kill(supervisor, signal.SIGKILL)
        try:
            await eventually(lambda: not [pid for pid in left if tree.find(pid)], BOUND_SECONDS)
        finally:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # The ports are free.
        await world.start("router-1")

"""What benches run on: the real servers, and the whole system on them, started when the first bench asks for it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from libs.clock import SystemClock
from libs.ownership.model import Record, Row, Store, Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.ports import free_port
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.servers.stack import Stack
from libs.proving.trial.world import Size, World
from libs.rpc.channel import Channel, open_channel
from libs.store.port import StorePorts
from services.simple_mcp.store import initialise, open_store
from tests.bench.measure import Memory

PAYLOAD_BYTES = 500
CLIENT = "client"
"""The bench itself, among the processes."""
PROXY = "bare proxy"
SEED_RECORDS = 200
_SEED_RECORDS = 1000
"""At once."""
CALL_SECONDS = 20.0
_PROXY_SECONDS = 20.0


def name_of(number: int) -> str:
    return f"sandboxes/bench-{number:06}"


def payload_of(number: int, padding: int = 0) -> bytes:
    """A sandbox of about PAYLOAD_BYTES."""
    sandbox = Sandbox(
        name=name_of(number),
        uid=f"{number:032x}",
        state=Sandbox.STATE_RUNNING,
        spec=SandboxSpec(image="registry.example/bench:1", command=["serve"], cpu_millis=500, memory_mib=512),
        labels={"team": "bench"},
        account="bench",
        schema_version=2,
        revision=1,
        etag=Version(0, 1).etag,
    )
    sandbox.annotations["padding"] = "x" * (PAYLOAD_BYTES - 170 + padding)
    return sandbox.SerializeToString(deterministic=True)


def records(count: int, owner: Store, start: int = 0) -> list[Record]:
    """As their first write left them; so many, from this number on."""
    first = Version(0, 1)
    return [
        Record(Row(name_of(number), first, owner, first, True, payload_of(number), 2), (), owner, time.time())
        for number in range(start, start + count)
    ]


@dataclass(slots=True)
class Site:
    """Benches may leave records with A and the phase OFF, nothing else."""

    stack: Stack
    directory: Path
    quick: bool
    exits: AsyncExitStack
    many: int = 0
    """Records of a bench that needs many."""
    idle: dict[str, Memory] = field(default_factory=dict)
    """Of each process, before any call."""
    _world: World | None = None
    _proxy: ServerProcess | None = None
    proxy_address: str = ""

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def records(self) -> int:
        """That A has at the start."""
        return self.pick(20_000, 4_000)

    async def world(self) -> World:
        """The running system, a bare proxy before A beside it."""
        if self._world is None:
            old = self.directory / "old.db"
            await seed_old_database(old, self.records)
            made = await asyncio.to_thread(World.real, self.directory / "world", self.stack, old, Size(http=True))
            self._world = await self.exits.enter_async_context(made.running())
            await self._start_proxy(self._world.nodes["a"].public)
            self.idle = self.memory()
        return self._world

    async def _start_proxy(self, target: str) -> None:
        self.proxy_address = f"127.0.0.1:{free_port()}"
        argv = [sys.executable, "-m", "tests.bench.proxy", self.proxy_address, target]
        self._proxy = ServerProcess(Command("proxy", argv, self.directory / "proxy.log", PROJECT_ROOT))
        self.exits.callback(self._proxy.kill)
        self._proxy.start()
        async with open_channel(self.proxy_address) as channel, asyncio.timeout(_PROXY_SECONDS):
            state = channel.grpc.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                await channel.grpc.wait_for_state_change(state)
                state = channel.grpc.get_state(try_to_connect=True)

    async def channel(self, address: str) -> Channel:
        """Open as long as the site."""
        return await self.exits.enter_async_context(open_channel(address))

    @property
    def pids(self) -> Mapping[str, int]:
        """Of every process that runs, by name."""
        found = {CLIENT: os.getpid()}
        processes = {name: node.process for name, node in self._world.nodes.items()} if self._world else {}
        if self._proxy is not None:
            processes[PROXY] = self._proxy
        for name, process in processes.items():
            if process.pid is None:
                raise process.failure("has ended, and nobody told it to")
            found[name] = process.pid
        return found

    def memory(self) -> dict[str, Memory]:
        return {name: Memory.of(pid) for name, pid in self.pids.items()}


async def seed_old_database(path: Path, count: int) -> None:
    """A database of A that owns everything and has this many records."""
    await asyncio.to_thread(initialise, path)
    async with open_store(path, SystemClock()) as store:
        await seed(store, count)


async def seed(store: StorePorts, count: int) -> None:
    """Records that A owns, as many."""
    for start in range(0, count, _SEED_RECORDS):
        await store.transfers.apply(records(min(_SEED_RECORDS, count - start), Store.A, start))

"""The system under test: real servers, and a whole system on them that starts when the first bench needs it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
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
"""Name of the bench's own process."""
PROXY = "bare proxy"
SEED_RECORDS = 200
_SEED_BATCH = 1000
CALL_SECONDS = 20.0
_START_SECONDS = 20.0


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
    """Records after their first write, numbered from `start`."""
    first = Version(0, 1)
    return [
        Record(Row(name_of(number), first, owner, first, True, payload_of(number), 2), (), owner, time.time())
        for number in range(start, start + count)
    ]


@dataclass(slots=True)
class Site:
    """The servers and the system of a run. A bench must leave the phase OFF, and all records at A."""

    stack: Stack
    directory: Path
    quick: bool
    exits: AsyncExitStack
    many: int = 0
    """Number of records for a bench that needs many."""
    idle: dict[str, Memory] = field(default_factory=dict)
    """Memory of each process before any call."""
    _world: World | None = None
    _others: dict[str, ServerProcess] = field(default_factory=dict)
    """Processes beside the system, by name."""
    proxy_address: str = ""

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def records(self) -> int:
        """Number of records that A has at the start."""
        return self.pick(20_000, 4_000)

    async def world(self) -> World:
        """The running system, and a bare proxy in front of A."""
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
        await self.start(PROXY, ["-m", "tests.bench.proxy", self.proxy_address, target], self.proxy_address)

    async def start(self, name: str, arguments: Sequence[str], address: str, **env: str) -> None:
        """Start a Python process beside the system, with these variables in its environment, and wait until it accepts
        connections at the address."""
        await self.start_program(name, [sys.executable, *arguments], address, **env)

    async def start_program(self, name: str, argv: Sequence[str], address: str, **env: str) -> None:
        log = self.directory / f"{name.replace(' ', '-')}.log"
        process = ServerProcess(Command(name, argv, log, PROJECT_ROOT, {**os.environ, **env}))
        self.exits.callback(process.kill)
        process.start()
        self._others[name] = process
        async with open_channel(address) as channel, asyncio.timeout(_START_SECONDS):
            state = channel.grpc.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                await channel.grpc.wait_for_state_change(state)
                state = channel.grpc.get_state(try_to_connect=True)

    async def end(self, name: str) -> None:
        """End a process beside the system, with all its children."""
        await asyncio.to_thread(self._others.pop(name).kill)

    async def channel(self, address: str) -> Channel:
        """A channel that stays open until the end of the run."""
        return await self.exits.enter_async_context(open_channel(address))

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids by name. Raises if a process has ended."""
        found = {CLIENT: os.getpid()}
        processes = {name: node.process for name, node in self._world.nodes.items()} if self._world else {}
        processes |= self._others
        for name, process in processes.items():
            if process.pid is None:
                raise process.failure("has ended unexpectedly")
            found[name] = process.pid
        return found

    def memory(self) -> dict[str, Memory]:
        return {name: Memory.of(pid) for name, pid in self.pids.items()}


async def seed_old_database(path: Path, count: int) -> None:
    """Make a database of A that owns all buckets and this many records."""
    await asyncio.to_thread(initialise, path)
    async with open_store(path, SystemClock()) as store:
        await seed(store, count)


async def seed(store: StorePorts, count: int) -> None:
    """Add this many records that A owns."""
    for start in range(0, count, _SEED_BATCH):
        await store.transfers.apply(records(min(_SEED_BATCH, count - start), Store.A, start))

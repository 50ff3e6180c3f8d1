"""The two services as processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.rpc.channel import Channel, open_channel
from tests import forks

if TYPE_CHECKING:
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

READY = re.compile(r"ready public=(\S+) internal=(\S+)\n")
START_SECONDS = 120.0
STOP_SECONDS = 60.0


@dataclass
class Service:
    """A process that has said that it is ready."""

    process: forks.Piped
    public: Channel
    internal: Channel

    @property
    def client(self) -> SandboxServiceAsyncStub:
        return SandboxServiceStub(self.public.grpc)

    @property
    def replication(self) -> ReplicationServiceAsyncStub:
        return ReplicationServiceStub(self.internal.grpc)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """The exit code, once the process has ended."""
        async with asyncio.timeout(STOP_SECONDS):
            return await self.process.wait()


def environment(program: str, settings: Mapping[str, object]) -> dict[str, str]:
    """This process's, with these settings of the service: `database=...` and so on."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SIMPLE_MCP_", "SERVICE_LAYER_"))}
    given = {"public": "127.0.0.1:0", "internal": "127.0.0.1:0", **settings}
    return own | {f"{program}_{name}".upper(): str(value) for name, value in given.items()}


async def spawn(program: str, settings: Mapping[str, object], *arguments: str) -> forks.Piped:
    return await forks.start(f"services.{program}", arguments, environment(program, settings))


async def run_to_end(program: str, settings: Mapping[str, object], *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a process that ends by itself."""
    process = await spawn(program, settings, *arguments)
    try:
        async with asyncio.timeout(START_SECONDS):
            _, errors = await process.communicate()
    finally:
        process.kill()
        code = await process.wait()
    return code, errors.decode()


@asynccontextmanager
async def running(program: str, **settings: object) -> AsyncIterator[Service]:
    """A service that is ready. At the end it is stopped, and killed if it does not end."""
    process = await spawn(program, settings)
    reading: asyncio.Task[bytes] | None = None
    try:
        reading = asyncio.create_task(process.stderr.read())
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode()
        found = READY.fullmatch(line)
        if found is None:
            raise AssertionError(f"{program} did not start: {line!r} {(await reading).decode()}")
        async with open_channel(found[1]) as public, open_channel(found[2]) as internal:
            yield Service(process, public, internal)
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading

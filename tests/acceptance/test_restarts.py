"""The promise to callers: a planned restart of any part, and a quick one after a kill, fails no call.

Ten clients call the two routers all the time, each over one plain gRPC channel. They send a call once. Each writes its
own record and reads it back. How long a restart takes depends on the machine: no call may take longer than the restart
and five seconds more. The deadlines of the calls and the routers' patience are longer than that on a busy machine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import RawCallable
from libs.rpc.errors import reason_of
from tests.waiting import eventually

CLIENTS = 10
DEADLINE_SECONDS = 25.0
"""Deadline of the calls, and the routers' patience."""
LONGER_SECONDS = 5.0
"""A call may take so much longer than the restart beside it."""
PAUSE_SECONDS = 0.1
"""Between two calls of a client."""
STEADY_CALLS = 20
"""That each client has answered by each router it can reach, before the next part restarts."""
SERVICE = "/sandbox.v1.SandboxService/"
VALUE = "value"
REASON = "an acceptance run"


@dataclass
class Seen:
    """The clients' observations while a part restarted."""

    calls: int = 0
    stale: int = 0
    slowest_seconds: float = 0.0
    restart_seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.restart_seconds:.2f} s, {self.calls} calls, {len(self.failed)} failed,"
            f" slowest {self.slowest_seconds:.2f} s, {self.stale} stale"
        )


@dataclass
class Client:
    """One caller and its record."""

    name: str
    channel: grpc.aio.Channel
    seen: dict[str, Seen]
    stop: asyncio.Event
    step: str = "steady"
    value: int = 0
    answered: int = 0

    async def run(self) -> None:
        made = pb.CreateSandboxRequest(sandbox_id=self.name, sandbox=self._sandbox())
        await self._call("CreateSandbox", made.SerializeToString())
        while not self.stop.is_set():
            await self._update()
            await self.read()
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self) -> None:
        """Fails the test if a strict read shows less than was acknowledged."""
        found = await self._call("GetSandbox", pb.GetSandboxRequest(name=self.full_name).SerializeToString())
        if found is not None:
            shown = int(found.annotations[VALUE])
            assert shown >= self.value, f"{self.full_name}: {shown} is shown, {self.value} was acknowledged"

    async def _update(self) -> None:
        wanted = self._sandbox(self.value + 1)
        if await self._call("UpdateSandbox", pb.UpdateSandboxRequest(sandbox=wanted).SerializeToString()) is not None:
            self.value += 1

    @property
    def full_name(self) -> str:
        return f"sandboxes/{self.name}"

    def _sandbox(self, value: int = 0) -> Sandbox:
        spec = SandboxSpec(image="image:1")
        return Sandbox(name=self.full_name if value else "", account="acme", spec=spec, annotations={VALUE: str(value)})

    async def _call(self, method: str, request: bytes) -> Sandbox | None:
        """None for a failed call and a stale answer. Counts where it ends: it may begin just before a restart."""
        began = time.monotonic()
        send: RawCallable = self.channel.unary_unary(SERVICE + method)
        call = send(request, timeout=DEADLINE_SECONDS)
        failed: list[str] = []
        try:
            data = await call
        except grpc.aio.AioRpcError as error:
            failed.append(f"{method} {error.code().name} {reason_of(error)[0]} {error.details()}")
            return None
        finally:
            seen = self.seen.setdefault(self.step, Seen())
            seen.failed += failed
            seen.calls += 1
            seen.slowest_seconds = max(seen.slowest_seconds, time.monotonic() - began)
        self.answered += 1
        if metadata.STALE in dict(await call.trailing_metadata() or ()):
            seen.stale += 1
            return None
        return Sandbox.FromString(data)


class Callers:
    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients
        self.seen = clients[0].seen

    async def during(self, step: str, work: Callable[[], Awaitable[None]]) -> None:
        """Restart a part; return when every client has gone on for a while after that."""
        self._label(step)
        began = time.monotonic()
        await work()
        self.seen.setdefault(step, Seen()).restart_seconds = time.monotonic() - began
        after = [client.answered + STEADY_CALLS for client in self._clients]
        await eventually(lambda: all(c.answered >= n for c, n in zip(self._clients, after, strict=True)), 60.0)
        self._label("steady")

    def _label(self, step: str) -> None:
        for client in self._clients:
            client.step = step


@asynccontextmanager
async def calling(world: World) -> AsyncIterator[Callers]:
    """Clients while the block runs. At its end each reads its record once more."""
    target = "ipv4:" + ",".join(world.routers)
    stop = asyncio.Event()
    seen: dict[str, Seen] = {}
    channels = [grpc.aio.insecure_channel(target, _OPTIONS) for _ in range(CLIENTS)]
    clients = [Client(f"restarts-{number}", channel, seen, stop) for number, channel in enumerate(channels)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        yield Callers(clients)
        stop.set()
        await asyncio.gather(*tasks)
        await asyncio.gather(*(client.read() for client in clients))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in channels))


_OPTIONS = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.use_local_subchannel_pool", 1),
    # How soon a client looks again for a router that was restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


def check(seen: dict[str, Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """Shows the figures of each step."""
    with capsys.disabled():
        print()
        for step, figures in seen.items():
            print(f"  {step}: {figures}")
    failed = {step: figures.failed for step, figures in seen.items() if figures.failed}
    assert not failed, f"calls failed: {failed}"
    late = [
        step for step, figures in seen.items() if figures.slowest_seconds > figures.restart_seconds + LONGER_SECONDS
    ]
    assert not late, f"calls took longer than the restart and {LONGER_SECONDS:g} s: {late}"


async def test_planned_restarts_of_every_process_fail_no_call(
    tmp_path: Path, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"owner_patience_seconds": str(DEADLINE_SECONDS)}
    world = World.real(tmp_path, stack, size=Size(routers=2, new=2, router_settings=(settings,) * 2))
    async with world.running(), calling(world) as callers:

        def restarted(name: str) -> Callable[[], Awaitable[None]]:
            return lambda: world.restart(name)

        async def killed() -> None:
            await world.kill("a")
            await world.start("a")

        await callers.during("restart of a in OFF", restarted("a"))
        await callers.during("kill -9 and start of a in OFF", killed)
        await callers.during("restart of router-1", restarted("router-1"))
        await callers.during("restart of router-2", restarted("router-2"))
        async with Walk.open(world.controls, "acceptance", world.token) as walk:
            await walk.backfill()
            for _ in range(2):
                await walk.advance(REASON)
            await walk.canary(50)
            await walk.settled()
        for name in ("a", "b-1", "b-2", "router-1", "router-2"):
            await callers.during(f"restart of {name} in DUAL_WRITE at 50 %", restarted(name))

        async def fast() -> None:
            """Restart as `pg_ctl restart -m fast` does."""
            await asyncio.to_thread(stack.postgres.restart)

        await callers.during("fast restart of PostgreSQL in DUAL_WRITE at 50 %", fast)
    check(callers.seen, capsys)


FLOOD = 1500
FLOOD_BYTES = 20_000
PATIENCE_SECONDS = 5.0
"""A router's patience by default."""
FLOOD_SECONDS = 30.0
"""Deadline of its calls: they end when the router's patience is over, long before."""
ROUTER_BYTES = 256 << 20
"""Memory that a router may use for the flood, including its runtime's memory per call."""


async def test_calls_for_a_store_that_does_not_come_back_end_with_a_reason_in_bounded_memory(tmp_path: Path) -> None:
    world = World.embedded(tmp_path)
    async with world.running(), grpc.aio.insecure_channel(world.routers[0], _OPTIONS) as channel:
        router = world.nodes["router-1"].process
        update: RawCallable = channel.unary_unary(f"{SERVICE}UpdateSandbox")
        create: RawCallable = channel.unary_unary(f"{SERVICE}CreateSandbox")
        sandbox = Sandbox(account="acme", spec=SandboxSpec(image="image:1"))
        await create(pb.CreateSandboxRequest(sandbox_id="one", sandbox=sandbox).SerializeToString(), timeout=30)
        before = resident_bytes(router.pid)
        await world.kill("a")
        request = pb.UpdateSandboxRequest(
            sandbox=Sandbox(name="sandboxes/one", annotations={VALUE: "x" * FLOOD_BYTES})
        ).SerializeToString()
        ended: Counter[str] = Counter()

        async def call() -> None:
            try:
                await update(request, timeout=FLOOD_SECONDS)
            except grpc.aio.AioRpcError as error:
                ended[reason_of(error)[0] or error.code().name] += 1

        began = time.monotonic()
        await asyncio.gather(*(call() for _ in range(FLOOD)))
        assert time.monotonic() - began > PATIENCE_SECONDS, "the calls have waited for the store"
        assert set(ended) <= {"OWNER_UNAVAILABLE", "OVERLOADED"}, ended
        assert ended.total() == FLOOD
        assert ended["OWNER_UNAVAILABLE"] > 0
        assert resident_bytes(router.pid) - before < ROUTER_BYTES


def resident_bytes(pid: int | None) -> int:
    """The most memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} shows no VmHWM")

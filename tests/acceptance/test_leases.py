"""Leases that clients hold, on real parts: through handoffs, with Redis flushed and away, and on one hot record."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from libs.pb.baton.control.v1.control_pb2 import SetFlagRequest
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.history import linearizability
from libs.proving.history.history import LEASES, WRITES, Outcome
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from tests.acceptance.faults import flushed
from tests.servers import make_usable
from tests.waiting import eventually

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "sandboxes/leased"
FLAG = "sandbox.routing.update_sandbox_use_service_layer"
CALL_SECONDS = 10.0
HOUR = Duration(seconds=3600)


@dataclass
class Site:
    world: World
    client: SandboxServiceAsyncStub
    """Stub of the router."""
    control: ControlServiceAsyncStub
    tokens: list[str] = field(default_factory=list)
    """In the order of their grants."""

    async def steer(self, to_b: bool) -> None:
        """Writes, and with them the records that they are about."""
        request = SetFlagRequest(actor="test", reason="a test", name=FLAG, value=to_b)
        token = grpc.aio.Metadata((metadata.TOKEN, self.world.token))
        await self.control.SetFlag(request, timeout=CALL_SECONDS, metadata=token)

    async def acquire(self, holder: str, request_id: str = "") -> str:
        request = pb.AcquireLeaseRequest(name=NAME, holder=holder, ttl=HOUR, request_id=request_id)
        held = await self.client.AcquireLease(request, timeout=CALL_SECONDS)
        if held.lease.token not in self.tokens:
            self.tokens.append(held.lease.token)
        return held.lease.token

    async def renew(self, token: str) -> Sandbox:
        return await self.client.RenewLease(pb.RenewLeaseRequest(name=NAME, token=token), timeout=CALL_SECONDS)

    async def release(self, token: str) -> None:
        await self.client.ReleaseLease(pb.ReleaseLeaseRequest(name=NAME, token=token), timeout=CALL_SECONDS)

    async def update(self, label: str, token: str = "") -> Sandbox:
        request = pb.UpdateSandboxRequest(sandbox=Sandbox(name=NAME, labels={"n": label}), lease_token=token)
        return await self.client.UpdateSandbox(request, timeout=CALL_SECONDS)

    async def owner(self) -> str:
        """Which store answers a strict read."""
        call = self.client.GetSandbox(
            pb.GetSandboxRequest(name=NAME),
            timeout=CALL_SECONDS,
            metadata=grpc.aio.Metadata((metadata.EXPLAIN, "1")),
        )
        await call
        return str(dict(await call.trailing_metadata() or ())[metadata.STORE])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    kafka_server: Kafka, postgres_server: Postgres, redis_process: Redis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    for server in (kafka_server, postgres_server, redis_process):
        make_usable(server)
    stack = Stack(kafka_server, postgres_server, redis_process)
    world = World.real(tmp_path_factory.mktemp("leases"), stack, size=Size(new=2))
    async with (
        world.running(),
        open_channel(world.routers[0]) as router,
        open_channel(world.controls[0]) as control,
        Walk.open(world.controls, "test", world.token) as walk,
    ):
        # Records go only to a store that the router has heard.
        await walk.serving("B")
        yield Site(world, SandboxServiceStub(router.grpc), ControlServiceStub(control.grpc))


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value)[0] == reason, caught.value.details()
    return caught.value


@contextmanager
def paused(redis: Redis) -> Iterator[None]:
    redis.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.kill(signal.SIGCONT)


async def test_a_lease_moves_with_its_sandbox_and_its_tokens_only_grow(site: Site, redis_process: Redis) -> None:
    spec = SandboxSpec(image="image:1")
    made = pb.CreateSandboxRequest(sandbox_id="leased", sandbox=Sandbox(account="acme", spec=spec))
    await site.client.CreateSandbox(made, timeout=CALL_SECONDS)
    ann = await site.acquire("ann")
    assert await site.owner() == "A"

    await site.steer(to_b=True)
    assert (await site.update("at-b", ann)).lease.token == ann
    assert await site.owner() == "B"
    await refused(site.acquire("ben"), "LEASE_HELD")
    assert (await site.renew(ann)).lease.renewals == 1
    await flushed(redis_process).begin()
    assert (await site.renew(ann)).lease.renewals == 2
    await refused(site.acquire("ben"), "LEASE_HELD")
    await site.release(ann)
    request_id = "5f0c1c4e-2c55-4a31-9d0e-3f1f3c2a7b10"
    ben = await site.acquire("ben", request_id)

    with paused(redis_process):
        assert (await site.update("without-locks", ben)).labels["n"] == "without-locks"
        await refused(site.renew(ben), "LOCKS_UNAVAILABLE")
        assert await site.acquire("ben", request_id) == ben, "it was served before"
        await refused(site.acquire("cid"), "LEASE_HELD")
        await refused(site.update("late", ann), "LEASE_LOST")

    async def renewed() -> bool:
        try:
            await site.renew(ben)
        except grpc.aio.AioRpcError as error:
            if reason_of(error)[0] != "LOCKS_UNAVAILABLE":
                raise
            return False
        return True

    await eventually(renewed, 20.0, "locks are back without a restart")

    await site.steer(to_b=False)
    assert (await site.renew(ben)).lease.token == ben
    assert await site.owner() == "A"
    await refused(site.update("late", ann), "LEASE_LOST")
    await refused(site.acquire("cid"), "LEASE_HELD")
    await site.release(ben)
    await site.acquire("cid")
    versions = [tuple(map(int, token.split("."))) for token in site.tokens]
    assert len(versions) == 3 and versions == sorted(versions), "a token is larger than those before it"


@asynccontextmanager
async def handed_over_and_over(site: Site, load: Load) -> AsyncIterator[list[bool]]:
    """The record goes to the other store after every so many calls. Yields where it was sent."""
    sent: list[bool] = []

    def has_done(attempts: int) -> bool:
        return load.stats.attempts >= attempts

    async def steer() -> None:
        while True:
            until = load.stats.attempts + 60
            sent.append(not (sent and sent[-1]))
            await site.steer(to_b=sent[-1])
            await eventually(partial(has_done, until), 60.0, "the clients go on")

    task = asyncio.create_task(steer())
    try:
        yield sent
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled() or task.result() is None


async def test_eight_writers_of_one_record_that_is_handed_to_and_fro_all_get_on(site: Site, tmp_path: Path) -> None:
    plan = LoadPlan(clients=8, calls_per_second=0, deadline_seconds=5.0, made_names=1, fresh_share=0.0, seed=5)
    load = Load(plan, site.world.routers, tmp_path / "history")

    async with load.running(), handed_over_and_over(site, load) as sent:
        await eventually(lambda: len(sent) >= 10 and load.stats.acknowledged_writes >= 300, 90.0, "handoffs and writes")
    calls = load.calls()
    written = Counter(call.client for call in calls if call.method in WRITES and call.outcome is Outcome.OK)
    assert len(written) == 8 and min(written.values()) >= 300 / 8 / 4, f"somebody starves: {written}"
    assert load.stats.unknown_outcomes == 0
    assert any(call.method in LEASES and call.outcome is Outcome.OK for call in calls)
    report = linearizability.check(calls)
    assert report.ok, "\n".join(map(str, report.failures))

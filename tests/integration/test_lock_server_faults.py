"""The new service, as a process on PostgreSQL, while its Redis is stopped, killed, full, slow or loses its data.

Ordinary writes continue by the versions in the rows. Calls that need a lock are refused with a retry delay. No process
has to be restarted when Redis is back.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from redis.asyncio import Redis as Client

from libs.clock import SystemClock
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.proving.servers.redis import Redis
from libs.rpc.errors import DETAILS_KEY, reason_of
from services.router.core.phase import Setting
from services.router.flows.steering.observe import Observer
from services.router.flows.stores import open_store
from tests.integration.processes import Service, running
from tests.system.store import new, refusal
from tests.waiting import eventually
from tests.wire import Wire, wire_to

NAMES = ("sandboxes/one", "sandboxes/two")


@dataclass
class Site:
    """The service with two sandboxes, its Redis, and the wire between them."""

    service: Service
    redis: Redis
    wire: Wire
    writes: int = 0

    async def write(self) -> None:
        """An ordinary one, to each sandbox."""
        for name in NAMES:
            sandbox = sandbox_pb2.Sandbox(name=name, labels={"write": str(self.writes)})
            changed = await self.service.client.UpdateSandbox(pb.UpdateSandboxRequest(sandbox=sandbox))
            assert changed.labels["write"] == str(self.writes)
        self.writes += 1

    def lease(self, name: str, holder: str = "ann") -> Any:
        request = pb.AcquireLeaseRequest(name=name, holder=holder, ttl=Duration(seconds=3600))
        return self.service.client.AcquireLease(request)

    async def is_leased(self, name: str) -> bool:
        try:
            await self.lease(name)
        except grpc.aio.AioRpcError as error:
            if reason_of(error)[0] != "LOCKS_UNAVAILABLE":
                raise
            return False
        return True

    async def locks(self) -> rpb.Locks:
        return (await self.service.replication.GetStatus(rpb.GetStatusRequest())).locks


@pytest.fixture
async def site(redis_server: Redis, store_dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    settings = {"event_log": f"sqlite:///{tmp_path}/log.db", "database": store_dsn}
    async with AsyncExitStack() as stack:
        wire, port = await stack.enter_async_context(wire_to(redis_server.port))
        redis = f"redis://127.0.0.1:{port}/0"
        service = await stack.enter_async_context(running("service_layer", **settings, redis=redis))
        for name in NAMES:
            bucket_owner = record_pb2.BucketOwner(bucket=bucket_of(name), version=1, owner=record_pb2.STORE_B)
            await service.replication.AdoptBuckets(rpb.AdoptBucketsRequest(bucket_owners=[bucket_owner]))
            await service.client.CreateSandbox(new(name.removeprefix("sandboxes/")))
        yield Site(service, redis_server, wire)


@asynccontextmanager
async def stopped(site: Site) -> AsyncIterator[None]:
    site.redis.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        site.redis.kill(signal.SIGCONT)


@asynccontextmanager
async def killed(site: Site) -> AsyncIterator[None]:
    site.redis.kill(signal.SIGKILL)
    try:
        yield
    finally:
        site.redis.start()


@asynccontextmanager
async def full(site: Site) -> AsyncIterator[None]:
    async with Client.from_url(site.redis.url, decode_responses=True) as client:
        before = str((await client.config_get("maxmemory"))["maxmemory"])
        await client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await client.config_set("maxmemory", before)


@asynccontextmanager
async def slow(site: Site) -> AsyncIterator[None]:
    site.wire.slow_seconds = 10.0
    try:
        yield
    finally:
        site.wire.slow_seconds = 0.0


@pytest.mark.parametrize("fault", [stopped, killed, full, slow])
async def test_without_redis_writes_go_on_and_leases_are_refused_until_it_is_back(site: Site, fault: Any) -> None:
    assert (await site.lease(NAMES[0])).lease.holder == "ann"
    assert (await site.locks()).breaker == "closed"
    pid = site.service.process.pid
    async with fault(site):
        for name in NAMES[1:] * 3:
            refused = await refusal(site.lease(name))
            assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.UNAVAILABLE, "LOCKS_UNAVAILABLE")
            assert retry_seconds(refused) == 1.0
            await site.write()
        # A server that answers, if only with an error, is no reason to keep away from it.
        assert ((await site.locks()).breaker == "closed") is (fault is full)
    await eventually(lambda: site.is_leased(NAMES[1]))
    await site.write()
    assert (await site.locks()).breaker == "closed"
    assert (site.service.process.pid, site.service.process.returncode) == (pid, None)


async def test_a_flush_takes_no_lease_and_no_token_goes_back(site: Site) -> None:
    first = (await site.lease(NAMES[0])).lease
    async with Client.from_url(site.redis.url) as client:
        await client.flushall()
    denied = await refusal(site.lease(NAMES[0], "bob"))
    assert (denied.code(), reason_of(denied)[0]) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_HELD")
    renew = pb.RenewLeaseRequest(name=NAMES[0], token=first.token)
    assert (await site.service.client.RenewLease(renew)).lease.token == first.token
    again = (await site.lease(NAMES[0])).lease
    assert term_and_revision(again.token) > term_and_revision(first.token)
    await site.write()


async def test_the_router_learns_how_long_writes_wait_for_their_turn(site: Site) -> None:
    """Those of this process: two were made, and each of these is two."""
    for _ in range(5):
        await site.write()
    async with open_store(Store.B, site.service.internal.address, None) as client:
        observer = Observer({Store.B: client}, None, SystemClock())
        assert observer.evidence(Setting(), None, None).lock_waits is None
        await observer.poll()
        assert observer.evidence(Setting(), None, None).lock_waits == {0: 12}, "nobody else wanted these records"


def term_and_revision(token: str) -> tuple[int, ...]:
    return tuple(int(part) for part in token.split("."))


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """Delay in the error's RetryInfo."""
    trailers = dict(error.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailers[DETAILS_KEY]).details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            seconds: float = retry.retry_delay.ToTimedelta().total_seconds()
            return seconds
    raise AssertionError("it does not say when to try again")

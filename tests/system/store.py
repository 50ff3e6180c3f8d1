"""One store in memory: its services, and the store behind real listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest

from libs.backend.admission import Admission, AskOther
from libs.backend.arrivals import Arrivals
from libs.backend.calls import Calls, Dependencies
from libs.backend.direct import DirectCalls
from libs.backend.event_auth import EventAuth, Mode
from libs.backend.feed import ApplyLoop
from libs.backend.logged import LogWaits
from libs.backend.passing import Passing
from libs.backend.recovery import RecoveryApi
from libs.backend.repair import RepairApi
from libs.backend.replication import Replication, StoreFacts
from libs.backend.serving import AdmissionLoop, Serving
from libs.clock import Clock, ManualClock
from libs.contract.descriptors import Contract
from libs.contract.operations import Operations
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import EventLog
from libs.locks.port import LockManager
from libs.ownership.model import Store
from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceStub
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1 import sandbox_pb2, sandbox_service_pb2
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.rpc.channel import Channel, open_channel
from libs.rpc.clients import Clients
from libs.rpc.forwarded import ForwardedPrincipal
from libs.rpc.server import RawService, Server, ServerConfig, TypedService
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from libs.store.columns import ColumnsOf
from libs.store.limits import OutboxLimits
from libs.store.memory import MemoryStore
from libs.tasks import Background
from tests.shelf import CONTRACT as SHELF_CONTRACT
from tests.shelf import ShelfOperations, shelf_columns

if TYPE_CHECKING:
    from libs.pb.baton.replication.v1.repair_pb2_grpc import RepairServiceAsyncStub
    from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceAsyncStub
    from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

CONTRACT = Contract.load("libs.pb.sandbox.v1.sandbox_service_pb2:SandboxService")
SERVICE = CONTRACT.service


@dataclass(frozen=True)
class Kit:
    """A contract and its implementation."""

    operations: Operations
    contract: Contract
    columns: ColumnsOf
    log_wait_seconds: float = 5.0
    schema_version: int = 1


SHELF = Kit(ShelfOperations(), SHELF_CONTRACT, shelf_columns)
SANDBOXES = Kit(SandboxOperations(), CONTRACT, sandbox_columns, schema_version=2)


class StoreServices(NamedTuple):
    """Services of a store in memory, as its process makes them."""

    ports: MemoryStore
    serving: Serving
    background: Background
    feed: ApplyLoop
    logged: LogWaits
    calls: Calls
    internal: list[RawService | TypedService]
    """Services of the internal listener."""
    admission_loop: AdmissionLoop


@dataclass
class HeldKeys:
    """Keys that a test changes."""

    content: KeyRing
    trouble: str = ""


class Auth(NamedTuple):
    """Authentication of a store's events."""

    mode: Mode
    keys: HeldKeys | None = None


def store_services(
    store: Store,
    kit: Kit,
    clock: Clock,
    log: MemoryEventLog,
    ask_other: AskOther | None,
    limits: OutboxLimits | None = None,
    auth: Auth | None = None,
    **options: Any,
) -> StoreServices:
    """`options`: those of the calls' dependencies."""
    ports = MemoryStore(store, clock, kit.columns, limits)
    serving, background = Serving(), Background(100, f"writes of {store}")

    async def open_log() -> EventLog:
        return log

    event_auth = EventAuth(auth.mode, log.name, ports.feed, auth.keys) if auth else EventAuth("off", "", ports.feed)
    arrivals = Arrivals(ports, kit.operations.check_row, ask_other, event_auth)
    feed = ApplyLoop(ports, open_log, clock, arrivals)
    logged = LogWaits(ports.outbox, kit.log_wait_seconds, lambda: feed.replaced)
    dependencies = Dependencies(serving, background, clock, logged, behind_seconds=feed.behind_seconds, **options)
    calls = Calls(kit.operations, kit.contract, ports, dependencies)
    facts = StoreFacts(kit.schema_version, outbox=limits or OutboxLimits())
    # Without a question to the other store, admission can only ask the log.
    admission_loop = AdmissionLoop(ports, Admission(ports, open_log, None, arrivals.read, event_auth), serving)
    internal: list[RawService | TypedService] = [
        calls.internal(),
        Replication(kit.operations, kit.contract, ports, feed, dependencies, facts).service(),
        RecoveryApi(ports, serving, admission_loop, feed).service(),
        RepairApi(kit.operations, ports, dependencies).service(),
    ]
    return StoreServices(ports, serving, background, feed, logged, calls, internal, admission_loop)


@dataclass
class OneStore:
    """One store with its two listeners."""

    store: MemoryStore
    clock: ManualClock
    log: MemoryEventLog
    serving: Serving
    background: Background
    feed: ApplyLoop
    logged: LogWaits
    public: Channel
    internal: Channel
    passing: Passing | None
    direct: DirectCalls
    service: RawService
    """The contract at the public listener, which is `server`."""
    server: Server

    @property
    def client(self) -> SandboxServiceAsyncStub:
        return SandboxServiceStub(self.public.grpc)

    @property
    def router(self) -> SandboxServiceAsyncStub:
        """The contract at the internal listener."""
        return SandboxServiceStub(self.internal.grpc)

    @property
    def repair(self) -> RepairServiceAsyncStub:
        return RepairServiceStub(self.internal.grpc)

    @property
    def replication(self) -> ReplicationServiceAsyncStub:
        return ReplicationServiceStub(self.internal.grpc)


@asynccontextmanager
async def listening(*services: RawService | TypedService, internal: bool = False) -> AsyncIterator[Server]:
    authenticator = ForwardedPrincipal() if internal else None
    server = Server(ServerConfig("127.0.0.1:0", "public", authenticator=authenticator), list(services))
    await server.start()
    try:
        yield server
    finally:
        await server.drain(1.0)


@asynccontextmanager
async def running_store(
    store: Store = Store.A,
    *,
    router: str = "",
    locks: LockManager | None = None,
    log: MemoryEventLog | None = None,
    limits: OutboxLimits | None = None,
    log_wait_seconds: float = 5.0,
    public_logged: bool = False,
    old: bool = False,
    ask_other: AskOther | None = None,
    auth: Auth | None = None,
) -> AsyncIterator[OneStore]:
    """`router`: the address to which calls go that the store cannot answer. `old`: as the old service."""
    clock = ManualClock()
    event_log = log or MemoryEventLog(4, clock=clock)
    direct = DirectCalls(clock)
    services = store_services(
        store,
        replace(SANDBOXES, log_wait_seconds=log_wait_seconds),
        clock,
        event_log,
        ask_other,
        limits,
        auth,
        locks=locks,
        public_logged=public_logged,
        direct=direct,
        public_schema=1 if old else 0,
        clients=Clients(CONTRACT.schemas, clock, everybody=old, notice="call the router" if old and router else ""),
    )
    services.serving.serve()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(services.background.drain, 5.0)
        passing = None
        if router:
            passing = Passing(await stack.enter_async_context(open_channel(router)), 5.0)
        internal = await stack.enter_async_context(listening(*services.internal, internal=True))
        service = services.calls.public(passing)
        public = await stack.enter_async_context(listening(service))
        channels = [await stack.enter_async_context(open_channel(server.address)) for server in (public, internal)]
        to_public, to_internal = channels
        yield OneStore(
            services.ports,
            clock,
            event_log,
            services.serving,
            services.background,
            services.feed,
            services.logged,
            to_public,
            to_internal,
            passing,
            direct,
            service,
            public,
        )


def new(name: str = "", *, request_id: str = "", **fields: Any) -> sandbox_service_pb2.CreateSandboxRequest:
    """A request to create a sandbox that is valid."""
    spec = sandbox_pb2.SandboxSpec(image="image:1")
    sandbox = sandbox_pb2.Sandbox(account="acme", spec=spec, **fields)
    return sandbox_service_pb2.CreateSandboxRequest(sandbox_id=name, sandbox=sandbox, request_id=request_id)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error in which the call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await call
    return caught.value

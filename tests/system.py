"""A whole system in one process: two backends over memory stores and a router, talking gRPC over loopback.

For tests of the router: real servers and channels, adapters in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from libs.backend.admission import Admission, open_other
from libs.backend.arrivals import Arrivals
from libs.backend.calls import Calls, Dependencies
from libs.backend.feed import ApplyLoop
from libs.backend.logged import LogWaits
from libs.backend.recovery import RecoveryApi
from libs.backend.repair import RepairApi
from libs.backend.replication import Replication, StoreFacts
from libs.backend.serving import AdmissionLoop, Serving
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.contract.operations import Operations
from libs.eventlog.memory import MemoryEventLog
from libs.flags.memory import MemoryFlags
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.replication.v1 import recovery_pb2
from libs.proving.servers.ports import free_port
from libs.rpc.channel import Channel, open_channel
from libs.rpc.clients import Clients
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig, TypedService
from libs.store.columns import ColumnsOf
from libs.store.memory import MemoryStore
from libs.tasks import Background, Loop
from services.router.api.proxy import Proxy
from services.router.control.memory import MemoryControlStore
from services.router.core.flags import FlagNames
from services.router.core.gates import Evidence, GateResult
from services.router.core.ledger import LedgerLimits
from services.router.core.phase import LAST_STEP_CONFIRM, Phase, Setting
from services.router.flows.calls.forward import Forward, ReadPolicy
from services.router.flows.calls.ledger import Auditor
from services.router.flows.calls.listing import Listing
from services.router.flows.calls.patience import Patience
from services.router.flows.calls.shadow import Shadow, ShadowLimits
from services.router.flows.calls.watching import Watching
from services.router.flows.feed.relay import Relay
from services.router.flows.moving.bucket_owners import Absences
from services.router.flows.moving.handoff import Handoffs
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.stores import StoreClient, open_store
from services.router.flows.traffic import Traffic
from tests.shelf import CONTRACT, ShelfOperations, shelf_columns


async def step(migration: Migration, decision: Decision) -> tuple[Setting, tuple[GateResult, ...]]:
    """Enter the next phase."""
    to = (await migration.plan()).next
    if to is None:
        raise AssertionError("there is no step forward")
    return await migration.advance(decision, to, LAST_STEP_CONFIRM)


def never_arrived(ports: MemoryStore, key: str) -> None:
    """Remove a row together with its count: a store that misses a counted row would be fenced."""
    del ports._state.rows[key]
    ports._state.counted[bucket_of(key)] -= 1


@dataclass
class Backend:
    """The process of one store."""

    ports: MemoryStore
    serving: Serving
    server: Server
    feed: ApplyLoop
    admission_loop: AdmissionLoop
    services: list[RawService | TypedService]

    async def drain(self) -> None:
        """End the listening process, as a kill would."""
        await self.server.drain(0.0)


@dataclass
class System:
    backends: dict[Store, Backend]
    stores: dict[Store, StoreClient]
    log: MemoryEventLog
    control: MemoryControlStore
    setting: SettingCache
    switches: Switches
    traffic: Traffic
    handoffs: Handoffs
    mover: Mover
    migration: Migration
    relays: dict[Store, Relay]
    client: Channel
    """Channel to the router's public listener."""
    observer: Observer
    shadow: Shadow
    auditor: Auditor
    clients: Clients
    """Clients of old schema versions at the router."""
    patience: Patience
    router: Server
    """The router's public listener."""
    service: RawService
    """The contract as the router serves it."""
    contract: Contract

    def ports(self, store: Store) -> MemoryStore:
        return self.backends[store].ports

    async def stop(self, store: Store) -> None:
        """End a backend as a kill would: its listeners are gone."""
        await self.backends[store].drain()

    async def start(self, store: Store) -> None:
        """Start a new process of a stopped backend at the same address. Needs a system with patience."""
        backend = self.backends[store]
        backend.server = Server(ServerConfig(backend.server.address, "internal"), backend.services)
        await backend.server.start()


async def _backend(
    stack: AsyncExitStack,
    store: Store,
    log: MemoryEventLog,
    kit: Kit,
    all_of_them: Mapping[Store, Backend],
    port: int,
) -> Backend:
    clock = SystemClock()
    ports = MemoryStore(store, clock, kit.columns)
    serving = Serving()
    background = Background(100, f"writes of {store}")

    async def open_log() -> MemoryEventLog:
        return log

    async def ask_other() -> recovery_pb2.GetStandingResponse:
        async with open_other(all_of_them[store.other].server.address, None) as ask:
            return await ask()

    arrivals = Arrivals(ports, kit.operations.check_row, ask_other)
    feed = ApplyLoop(ports, open_log, clock, arrivals)
    around = Dependencies(
        serving, background, clock, LogWaits(ports.outbox, kit.log_wait_seconds, lambda: feed.replaced)
    )
    calls = Calls(kit.operations, kit.contract, ports, around)
    replication = Replication(kit.operations, ports, feed, around, StoreFacts(kit.schema_version))
    # Admission can only ask the log. The owner of a system admits its stores at will.
    admission_loop = AdmissionLoop(ports, Admission(ports, open_log, None, arrivals.read), serving)
    recovery = RecoveryApi(ports, serving, admission_loop, feed)
    repair = RepairApi(kit.operations, ports, around)
    services: list[RawService | TypedService] = [
        calls.internal(),
        replication.service(),
        recovery.service(),
        repair.service(),
    ]
    server = Server(ServerConfig(f"127.0.0.1:{port}", "internal"), services)
    await server.start()
    backend = Backend(ports, serving, server, feed, admission_loop, services)
    stack.push_async_callback(backend.drain)
    serving.serve()
    return backend


@dataclass(frozen=True)
class Kit:
    """A contract and its implementation."""

    operations: Operations
    contract: Contract
    columns: ColumnsOf
    log_wait_seconds: float = 5.0
    schema_version: int = 1


SHELF = Kit(ShelfOperations(), CONTRACT, shelf_columns)

QUICK_LEDGER = LedgerLimits(permille=1000, settle_seconds=0.0, again_seconds=0.0)

WATCH_PATIENCE_SECONDS = 1.0

LONG_SECONDS = 1e9
"""Time during which no client has called A directly."""

STALE_READS = ReadPolicy()

QUICK_SHADOW = ShadowLimits(settle_seconds=0.05)


@asynccontextmanager
async def running_system(
    kit: Kit = SHELF,
    *,
    feeds: bool = True,
    mover: bool = True,
    shadow_limits: ShadowLimits = QUICK_SHADOW,
    logged: frozenset[Phase] = frozenset(),
    kit_of_a: Kit | None = None,
    patience_seconds: float = 0.0,
    policy: ReadPolicy = STALE_READS,
) -> AsyncIterator[System]:
    """`feeds`: run relays and apply loops. `mover`: move buckets to follow the setting. `logged`: phases in which
    writes are acknowledged from the log. `kit_of_a`: kit of another program at A. `patience_seconds`: how long a call
    waits for an unavailable store."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        log = MemoryEventLog(16)
        kits = {Store.A: kit_of_a or kit, Store.B: kit}
        # A port that no other process can take while a store is stopped.
        places = {store: free_port() if patience_seconds else 0 for store in Store}
        backends: dict[Store, Backend] = {}
        for store in Store:
            backends[store] = await _backend(stack, store, log, kits[store], backends, places[store])
        stores: dict[Store, StoreClient] = {}
        for store, backend in backends.items():
            stores[store] = await stack.enter_async_context(open_store(store, backend.server.address, None))
        control = MemoryControlStore()
        switches = Switches(FlagNames.of(kit.contract), MemoryFlags("control store"), None, clock)
        stack.callback(switches.close)
        setting = SettingCache(control, clock, switches)
        await setting.refresh()
        traffic = Traffic()
        transfer = Transfer(stores)
        handoffs = Handoffs(transfer, Absences(transfer), traffic)
        the_mover = Mover(stores, transfer, setting, control, "router-1", clock)
        observer = Observer(stores, log, clock, interval_seconds=0.02)

        def evidence(current: Setting) -> Evidence:
            seen = observer.evidence(current, the_mover.buckets_at_b, None)
            return replace(seen, clients_watched_seconds=LONG_SECONDS, under_way=())

        migration = Migration(control, setting, evidence, clock)
        patience = Patience(traffic, patience_seconds)
        forward = Forward(stores, handoffs, traffic, clock, policy, patience)
        shadow = Shadow(kit.contract, stores, setting, observer, clock, shadow_limits)
        listing = Listing(stores, traffic, policy, shadow, clock, patience)
        writes = Background(100, "writes", lambda: patience.writes)
        auditor = Auditor(stores, clock, QUICK_LEDGER)
        watching = Watching(stores, setting, clock, WATCH_PATIENCE_SECONDS)
        clients = Clients(kit.contract.schemas, clock)
        proxy = Proxy(
            kit.contract,
            forward,
            listing,
            setting,
            traffic,
            writes,
            clock,
            shadow,
            auditor,
            logged,
            watching=watching,
            clients=clients,
        )
        limits = ServerLimits(waiting=lambda: patience.calls)
        router = Server(ServerConfig("127.0.0.1:0", "public", limits), [proxy.service()])
        await router.start()
        stack.push_async_callback(router.drain, 0.0)
        client = await stack.enter_async_context(open_channel(router.address))
        relays = {store: Relay(stores[store], log, control, "router-1", clock) for store in Store}
        loops = [Loop(f"relay {store}", relay.run_once) for store, relay in relays.items()] if feeds else []
        loops += [backend.feed.loop for backend in backends.values()] if feeds else []
        loops += [Loop("mover", the_mover.run_once)] if mover else []
        loops += [observer.loop, *shadow.loops]
        tasks = [asyncio.create_task(loop.run()) for loop in loops]
        try:
            yield System(
                backends,
                stores,
                log,
                control,
                setting,
                switches,
                traffic,
                handoffs,
                the_mover,
                migration,
                relays,
                client,
                observer,
                shadow,
                auditor,
                clients,
                patience,
                router,
                proxy.service(),
                kit.contract,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await writes.drain(1.0)

"""A whole system in one process: two stores in memory and a router, talking gRPC over loopback.

For tests of the router: real servers and channels, adapters in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from libs.backend.admission import open_other
from libs.backend.feed import ApplyLoop
from libs.backend.serving import AdmissionLoop, Serving
from libs.clock import SystemClock
from libs.contract.descriptors import Contract
from libs.eventlog.memory import MemoryEventLog
from libs.flags.memory import MemoryFlags
from libs.flags.port import FlagSource
from libs.identity.port import Authenticator
from libs.ownership.model import Store, bucket_of
from libs.pb.baton.replication.v1 import recovery_pb2
from libs.proving.servers.ports import free_port
from libs.rpc.channel import Channel, open_channel
from libs.rpc.clients import Clients
from libs.rpc.forwarded import ForwardedPrincipal
from libs.rpc.gate import ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig, TypedService
from libs.store.memory import MemoryStore
from libs.tasks import Background, Loop
from services.router.api.proxy import Proxy
from services.router.control.memory import MemoryControlStore
from services.router.core.flags import FlagNames
from services.router.core.gates import Evidence, GateResult
from services.router.core.phase import LAST_STEP_CONFIRM, Phase, Setting
from services.router.core.write_ledger import LedgerLimits
from services.router.flows.calls.difference_book import DifferenceBook
from services.router.flows.calls.forward import Forward, ReadPolicy
from services.router.flows.calls.listing import Listing
from services.router.flows.calls.patience import Patience
from services.router.flows.calls.shadow import Shadow, ShadowLimits
from services.router.flows.calls.watch_streams import WatchStreams
from services.router.flows.calls.write_auditor import Auditor
from services.router.flows.feed.relay import Relay
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.handoff import Handoffs
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.stores import StoreClient, open_store
from services.router.flows.traffic import Traffic
from tests.shelf import CONTRACT
from tests.system.store import SHELF, Kit, store_services


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
class StoreProcess:
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
    backends: dict[Store, StoreProcess]
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
        """End a backend as a kill would: its listeners close."""
        await self.backends[store].drain()

    async def start(self, store: Store) -> None:
        """Start a new process of a stopped backend at the same address. Needs a system with patience."""
        backend = self.backends[store]
        backend.server = Server(_internal(backend.server.address), backend.services)
        await backend.server.start()


def _internal(address: str) -> ServerConfig:
    return ServerConfig(address, "internal", authenticator=ForwardedPrincipal())


async def _store_process(
    stack: AsyncExitStack,
    store: Store,
    log: MemoryEventLog,
    kit: Kit,
    all_of_them: Mapping[Store, StoreProcess],
    port: int,
) -> StoreProcess:

    async def ask_other() -> recovery_pb2.GetStandingResponse:
        async with open_other(all_of_them[store.other].server.address, None) as ask:
            return await ask()

    services = store_services(store, kit, SystemClock(), log, ask_other)
    server = Server(_internal(f"127.0.0.1:{port}"), services.internal)
    await server.start()
    backend = StoreProcess(
        services.ports, services.serving, server, services.feed, services.admission_loop, services.internal
    )
    stack.push_async_callback(backend.drain)
    services.serving.serve()
    return backend


QUICK_LEDGER = LedgerLimits(permille=1000, settle_seconds=0.0, again_seconds=0.0)

WATCH_PATIENCE_SECONDS = 1.0

LONG_SECONDS = 1e9
"""Time during which no client has called A directly."""

STALE_READS = ReadPolicy()

QUICK_SHADOW = ShadowLimits(settle_seconds=0.05)


@dataclass(frozen=True)
class CallOptions:
    """Options of the part of a router that serves calls."""

    policy: ReadPolicy = STALE_READS
    patience_seconds: float = 0.0
    logged: frozenset[Phase] = frozenset()
    """Phases in which writes are acknowledged from the log."""
    authenticator: Authenticator | None = None


class CallServer(NamedTuple):
    """The part of a router that serves calls."""

    traffic: Traffic
    handoffs: Handoffs
    patience: Patience
    clients: Clients
    service: RawService
    server: Server
    client: Channel


async def _serve_calls(
    stack: AsyncExitStack,
    contract: Contract,
    stores: Mapping[Store, StoreClient],
    setting: SettingCache,
    shadow: Shadow,
    auditor: Auditor,
    options: CallOptions = CallOptions(),
) -> CallServer:
    clock = SystemClock()
    traffic = Traffic()
    handoffs = Handoffs(Transfer(stores), BucketMoves(Transfer(stores)), traffic)
    patience = Patience(traffic, options.patience_seconds)
    forward = Forward(stores, handoffs, traffic, clock, options.policy, patience)
    listing = Listing(stores, traffic, options.policy, shadow, clock, patience)
    writes = Background(100, "writes", lambda: patience.writes)
    watching = WatchStreams(stores, setting, clock, WATCH_PATIENCE_SECONDS)
    clients = Clients(contract.schemas, clock)
    proxy = Proxy(
        contract,
        forward,
        listing,
        setting,
        traffic,
        writes,
        clock,
        shadow,
        auditor,
        options.logged,
        watching=watching,
        clients=clients,
    )
    limits = ServerLimits(waiting=lambda: patience.calls)
    service = proxy.service()
    config = ServerConfig("127.0.0.1:0", "public", limits, authenticator=options.authenticator)
    server = Server(config, [service])
    await server.start()
    stack.push_async_callback(server.drain, 0.0)
    client = await stack.enter_async_context(open_channel(server.address))
    stack.push_async_callback(writes.drain, 1.0)
    return CallServer(traffic, handoffs, patience, clients, service, server, client)


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
    authenticator: Authenticator | None = None,
) -> AsyncIterator[System]:
    """`feeds`: run relays and apply loops. `mover`: move buckets to follow the setting. `logged`: phases in which
    writes are acknowledged from the log. `kit_of_a`: kit of another program at A. `patience_seconds`: how long a call
    waits for an unavailable store."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        log = MemoryEventLog(16)
        kits = {Store.A: kit_of_a or kit, Store.B: kit}
        # A port that no other process can take while a store is stopped.
        ports = {store: free_port() if patience_seconds else 0 for store in Store}
        backends: dict[Store, StoreProcess] = {}
        for store in Store:
            backends[store] = await _store_process(stack, store, log, kits[store], backends, ports[store])
        stores: dict[Store, StoreClient] = {}
        for store, backend in backends.items():
            stores[store] = await stack.enter_async_context(open_store(store, backend.server.address, None))
        control = MemoryControlStore()
        switches = Switches(FlagNames.of(kit.contract), MemoryFlags("control store"), None, clock)
        stack.callback(switches.close)
        setting = SettingCache(control, clock, switches)
        await setting.refresh()
        the_mover = Mover(stores, Transfer(stores), setting, control, "router-1", clock)
        observer = Observer(stores, log, clock, interval_seconds=0.02, setting=lambda: setting.current)

        def evidence(current: Setting) -> Evidence:
            seen = observer.evidence(current, the_mover.buckets_at_b, None)
            seen = replace(seen, deep_seconds_ago=0.0, deep_left=0, backup_seconds_ago=0.0)
            return replace(seen, clients_watched_seconds=LONG_SECONDS, under_way=())

        migration = Migration(control, setting, evidence, clock)
        book = DifferenceBook(control, "router-1", clock)
        shadow = Shadow(kit.contract, stores, setting, observer, clock, shadow_limits, book)
        auditor = Auditor(stores, clock, QUICK_LEDGER)
        options = CallOptions(policy, patience_seconds, logged, authenticator)
        calls = await _serve_calls(stack, kit.contract, stores, setting, shadow, auditor, options)
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
                calls.traffic,
                calls.handoffs,
                the_mover,
                migration,
                relays,
                calls.client,
                observer,
                shadow,
                auditor,
                calls.clients,
                calls.patience,
                calls.server,
                calls.service,
                kit.contract,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class AnotherRouter:
    setting: SettingCache
    switches: Switches
    traffic: Traffic
    client: Channel


@asynccontextmanager
async def another_router(
    system: System, *, refresh_seconds: float = 0.5, provider: FlagSource | None = None
) -> AsyncIterator[AnotherRouter]:
    """A router that shares stores and control store with the system's router, and moves no buckets."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        switches = Switches(FlagNames.of(CONTRACT), MemoryFlags("control store"), provider, clock)
        stack.callback(switches.close)
        setting = SettingCache(system.control, clock, switches, interval_seconds=refresh_seconds)
        await setting.refresh()
        calls = await _serve_calls(stack, CONTRACT, system.stores, setting, system.shadow, system.auditor)
        tasks = [asyncio.create_task(loop.run()) for loop in (setting.loop, *switches.loops)]
        try:
            yield AnotherRouter(setting, switches, calls.traffic, calls.client)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

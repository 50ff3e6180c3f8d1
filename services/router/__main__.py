"""A router's process: opens everything on one stack, serves, and ends in order when it is told to.

python -m services.router [--config FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.metrics import Meter

from libs.clock import Clock, SystemClock
from libs.contract.descriptors import Contract
from libs.eventlog.lazy import LazyEventLog
from libs.flags.flagd import flagd_source
from libs.flags.memory import MemoryFlags
from libs.flags.openfeature import OpenFeatureSource, load_factory
from libs.flags.port import FlagSource, FlagsUnavailable
from libs.ownership.model import Store
from libs.process import run, stop_signal
from libs.rpc.auth import read_token
from libs.rpc.clients import Clients
from libs.rpc.gate import CONNECTION_SHARE, ServerLimits
from libs.rpc.server import RawService, Server, ServerConfig
from libs.settings import USAGE_EXIT_CODE, WrongSetting, load
from libs.tasks import Background, Loop
from libs.telemetry.logs import configure
from libs.telemetry.metrics import open_metrics
from services.router.api.control import URGENT, control_service
from services.router.api.parts import Parts
from services.router.api.proxy import Proxy
from services.router.control.memory import MemoryControlStore
from services.router.control.postgres import PostgresControlStore
from services.router.control.sqlite import SqliteControlStore
from services.router.core.flags import FlagNames
from services.router.core.gates import Evidence
from services.router.core.phase import Setting
from services.router.flows.calls.explain import Explainer
from services.router.flows.calls.forward import Forward, ReadPolicy
from services.router.flows.calls.ledger import Auditor
from services.router.flows.calls.listing import Listing
from services.router.flows.calls.patience import Patience
from services.router.flows.calls.shadow import Shadow
from services.router.flows.calls.watching import Watching
from services.router.flows.feed.adopted_logs import AdoptedLogs
from services.router.flows.feed.conflicts import Conflicts
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.heartbeat import Witness
from services.router.flows.feed.parked import ParkedEvents
from services.router.flows.feed.relay import Relay
from services.router.flows.feed.repair import RecordRepair
from services.router.flows.feed.retention import HorizonWatch
from services.router.flows.jobs.audit import Audit, LastAudit
from services.router.flows.jobs.backfill import TO_B, Backfill
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.log_gap import GapWatch
from services.router.flows.jobs.reconcile import Reconcile
from services.router.flows.jobs.reconcile_schedule import Reconciling
from services.router.flows.jobs.recover import Recover, Seize
from services.router.flows.jobs.rehearsal import Rehearsal, Rehearsals
from services.router.flows.jobs.replay import Replay
from services.router.flows.jobs.restart_events import RestartEvents
from services.router.flows.jobs.runner import Around, Jobs
from services.router.flows.jobs.validate import Validate
from services.router.flows.moving.bucket_owners import Absences
from services.router.flows.moving.handoff import Handoffs
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.clients import ClientWatch
from services.router.flows.steering.diagnose import Surroundings
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.measure import EvidenceMetrics, Measurement, Sources, answered_by_b
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.steering.phase_since import PhaseSince
from services.router.flows.steering.probe import Probe
from services.router.flows.steering.report import old_clients
from services.router.flows.steering.under_way import under_way
from services.router.flows.stores import Stores, open_store
from services.router.flows.traffic import Traffic
from services.router.settings import RouterSettings

if TYPE_CHECKING:
    from libs.http.listener import HttpListener

log = logging.getLogger(__name__)

_OPEN_LOG_SECONDS = 3.0
"""How long a start waits for a log that is out of reach; it is tried again while the process serves."""

AnyControlStore = SqliteControlStore | PostgresControlStore | MemoryControlStore


@asynccontextmanager
async def open_control_store(address: str, clock: Clock) -> AsyncIterator[AnyControlStore]:
    """Raises ControlUnavailable, NewerSchema."""
    if address.startswith("sqlite:///"):
        async with SqliteControlStore.open(Path(address.removeprefix("sqlite:///")), clock=clock) as file:
            yield file
    elif address.startswith("postgresql://"):
        async with PostgresControlStore.open(address, clock=clock) as server:
            yield server
    else:
        yield MemoryControlStore(clock=clock)


def open_switches(settings: RouterSettings, contract: Contract, clock: Clock) -> Switches:
    """The flags of this contract. Raises UnfitProvider."""
    names = FlagNames.of(contract, settings.flag_prefix, settings.flag_noun)
    place = settings.flag_provider
    provider: FlagSource | None = None
    if place.startswith("flagd:"):
        provider = flagd_source(Path(place.removeprefix("flagd:")))
    elif place != "control-store":
        provider = OpenFeatureSource(f"provider {place}", load_factory(place))
    return Switches(names, MemoryFlags("control store"), provider, clock)


class Router:
    """An open router. Its loops are the caller's to run."""

    def __init__(
        self, public: Server, http: HttpListener | None, control: Server, loops: list[Loop], writes: Background
    ) -> None:
        self.public = public
        self.http = http
        self.control = control
        self.loops = loops
        self.writes = writes

    def __str__(self) -> str:
        http = f" http={self.http.address}" if self.http is not None else ""
        return f"public={self.public.address} control={self.control.address}{http}"

    async def drain(self, timeout_seconds: float) -> None:
        """Send clients away and answer every call that still arrives, within the timeout."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_seconds
        doors = (self.public, self.http) if self.http is not None else (self.public,)
        await asyncio.gather(*(door.drain(timeout_seconds / 2) for door in doors))
        await self.writes.drain(max(end - clock(), 0.1))
        await self.control.drain(0.2)


@asynccontextmanager
async def open_router(settings: RouterSettings) -> AsyncIterator[Router]:
    """A router that listens and serves. Raises BatonError when it cannot."""
    clock = SystemClock()
    token = read_token(settings.token_file) if settings.token_file else None
    async with AsyncExitStack() as stack:
        meter = await stack.enter_async_context(open_metrics(settings.metrics))
        control_store = await stack.enter_async_context(open_control_store(settings.control_store, clock))
        event_log = LazyEventLog(settings.log_address)
        stack.push_async_callback(event_log.close)
        if away := await event_log.try_open(_OPEN_LOG_SECONDS):
            log.warning("event_log: out of reach at the start, tried again while serving: %s", away)
        stores = {
            Store.A: await stack.enter_async_context(open_store(Store.A, settings.store_a, token)),
            Store.B: await stack.enter_async_context(open_store(Store.B, settings.store_b, token)),
        }
        contract = Contract.load(settings.contract)
        switches = open_switches(settings, contract, clock)
        stack.callback(switches.close)
        cache = SettingCache(control_store, clock, switches, interval_seconds=settings.refresh_seconds)
        # Without a first setting this router would plan by a phase that it does not know.
        await cache.refresh()
        try:
            await switches.refresh()
        except FlagsUnavailable as error:
            log.warning("flags: out of reach at the start, tried again while serving: %s", error)
        outside = Outside(control_store, event_log, stores, cache, switches, contract, token is not None, meter)
        router = _wire(settings, clock, outside)
        stack.push_async_callback(router.drain, settings.drain_seconds)
        await router.control.start()
        await router.public.start()
        if router.http is not None:
            await router.http.start()
            await router.http.set_serving(True)
        yield router


@dataclass(frozen=True, slots=True)
class Outside:
    """What a router talks to, open."""

    control_store: AnyControlStore
    event_log: LazyEventLog
    stores: Stores
    cache: SettingCache
    switches: Switches
    contract: Contract
    has_token: bool
    meter: Meter


def _wire(settings: RouterSettings, clock: Clock, outside: Outside) -> Router:
    """The flows, each over what it needs. Nothing runs yet."""
    control_store, event_log, stores, cache = outside.control_store, outside.event_log, outside.stores, outside.cache
    holder = settings.name or f"{socket.gethostname()}:{os.getpid()}"
    traffic = Traffic()
    transfer = Transfer(stores)
    handoffs = Handoffs(transfer, Absences(transfer), traffic)
    mover = Mover(stores, transfer, cache, control_store, holder, clock)
    observer = Observer(stores, event_log, clock)
    direct = ClientWatch(observer, control_store, clock)
    horizon = HorizonWatch(observer, event_log, clock)
    gap = GapWatch(control_store)

    def evidence(setting: Setting) -> Evidence:
        seen = observer.evidence(setting, mover.buckets_at_b, jobs.finished_seconds_ago(TO_B))
        seen = horizon.evidence(reconciling.evidence(seen))
        seen = direct.evidence(rehearsals.evidence(last_audit.evidence(seen)))
        seen = replace(measurement.evidence(seen), under_way=under_way(jobs, mover, observer))
        return gap.evidence(seen)

    migration = Migration(control_store, cache, evidence, clock, settings.limits)
    measurement = Measurement(
        control_store,
        traffic.meter,
        holder,
        clock,
        Sources(
            lambda: (cache.current.shadow_since, shadow.counts),
            traffic.answered,
            lambda: auditor.ledger.counts,
            traffic.totals,
            lambda: cache.current.generation,
            lambda: old_clients(clients, clock),
        ),
    )
    kinds = (
        Backfill(stores, clock),
        Audit(stores, outside.contract, clock),
        Replay(stores, event_log, clock),
        Reconcile(stores, transfer, event_log, clock),
        Validate(stores, clock),
        Seize(stores, event_log, clock, control_store),
        Recover(stores, event_log, clock, control_store, transfer),
        CanaryAuto(migration, cache, lambda: answered_by_b(measurement), lambda: mover.settled, clock),
        Rehearsal(stores, migration, cache, measurement.answered, clock),
    )
    jobs = Jobs(
        control_store,
        kinds,
        Around(holder, clock, lambda: measurement.load(observer.worst_lag_seconds), settings.throttle_limits),
    )
    last_audit = LastAudit(jobs, clock)
    reconciling = Reconciling(jobs, settings.reconcile_seconds, clock)
    rehearsals = Rehearsals(jobs, migration, cache, traffic, clock)
    EvidenceMetrics(outside.meter, lambda: evidence(cache.current), lambda: migration.limits(cache.current), clock)
    relays = [Relay(client, event_log, control_store, holder, clock) for client in stores.values()]
    policy = ReadPolicy(settings.stale_reads)
    patience = Patience(traffic, settings.owner_patience_seconds)
    writes = Background(settings.writes, "writes", lambda: patience.writes)
    forward = Forward(stores, handoffs, traffic, clock, policy, patience)
    shadow = Shadow(outside.contract, stores, cache, observer, clock)
    auditor = Auditor(stores, clock, settings.ledger_limits)
    automatic = AutomaticRollback(
        control_store, migration, measurement, cache, observer, clock, holder, settings.limits
    )
    listing = Listing(stores, traffic, policy, shadow, clock, patience)
    clients = Clients(outside.contract.schemas, clock)
    proxy = Proxy(
        outside.contract,
        forward,
        listing,
        cache,
        traffic,
        writes,
        clock,
        shadow,
        auditor,
        settings.logged_phases,
        watching=Watching(stores, cache, clock, settings.watch_patience_seconds),
        clients=clients,
    )
    control_token = read_token(settings.control_token_file) if settings.control_token_file else None
    tokens = {"control listener": control_token is not None, "stores": outside.has_token}
    explainer = Explainer(outside.contract, cache, stores)
    around = Surroundings(observer, cache, control_store, settings.event_log_partitions, tokens, lambda: gap.text)
    events = LogEvents(event_log, outside.contract)
    parts = Parts(
        migration=migration,
        cache=cache,
        observer=observer,
        traffic=traffic,
        mover=mover,
        jobs=jobs,
        around=around,
        switches=outside.switches,
        explainer=explainer,
        rehearsals=rehearsals,
        shadow=shadow,
        measurement=measurement,
        automatic_rollback=automatic,
        auditor=auditor,
        logged_phases=settings.logged_phases,
        clock=clock,
        events=events,
        parked=ParkedEvents(stores, migration),
        restart=RestartEvents(stores, jobs, migration, control_store),
        conflicts=Conflicts(stores, migration, events.content_of),
        repair=RecordRepair(stores, migration, outside.contract, events.content_of),
        phase_since=PhaseSince(control_store, cache),
        probe=Probe(outside.contract, stores, lambda: public.address, clock),
        usual_limits=settings.limits,
    )
    service = proxy.service()
    public = _public(settings, service, patience)
    return Router(
        public=public,
        http=_http(settings, outside, service, public, parts),
        control=_control(settings, parts, control_token),
        loops=[
            cache.loop,
            *outside.switches.loops,
            observer.loop,
            jobs.loop,
            reconciling.loop,
            last_audit.loop,
            rehearsals.loop,
            *shadow.loops,
            auditor.loop,
            measurement.loop,
            automatic.loop,
            direct.loop,
            horizon.loop,
            gap.loop,
            parts.phase_since.loop,
            AdoptedLogs(observer, migration, control_store, holder).loop,
            Witness(stores).loop,
            Loop("mover", mover.run_once),
            *(Loop(f"relay {relay.store}", relay.run_once) for relay in relays),
        ],
        writes=writes,
    )


def _http(
    settings: RouterSettings, outside: Outside, service: RawService, public: Server, parts: Parts
) -> HttpListener | None:
    if not settings.http:
        return None
    # Only a process that serves HTTP pays for it.
    from libs.http.opening import http_listener
    from services.router.api.tools import router_tools

    return http_listener(
        settings.http, outside.contract, service, public, outside.meter, more_tools=partial(router_tools, parts)
    )


def _public(settings: RouterSettings, service: RawService, patience: Patience) -> Server:
    limits = ServerLimits(
        settings.public_calls,
        waiting=lambda: patience.calls,
        streams=settings.watchers,
        connection_share=CONNECTION_SHARE,
        default_deadline_seconds=settings.default_deadline_seconds,
        longest_deadline_seconds=settings.longest_deadline_seconds,
    )
    return Server(ServerConfig(settings.public, "public", limits), [service])


def _control(settings: RouterSettings, parts: Parts, token: bytes | None) -> Server:
    limits = ServerLimits(urgent=URGENT)
    config = ServerConfig(settings.control, "control", limits, token, "control_token_file")
    return Server(config, [control_service(parts)])


async def serve(settings: RouterSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises what a part raised that failed."""
    stop = stop_signal()
    async with asyncio.TaskGroup() as owned, open_router(settings) as router:
        tasks = [owned.create_task(loop.run()) for loop in router.loops]
        log.info("ready %s", router)
        print(f"ready {router}", flush=True)
        await stop.wait()
        log.info("draining")
        await router.drain(settings.drain_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    log.info("stopped")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.router", description="Route calls to the record's owner.")
    parser.add_argument("--config", type=Path, help="TOML file with settings; the environment goes before it")
    arguments = parser.parse_args()
    configure("info", as_json=False)
    try:
        settings = load(RouterSettings, arguments.config)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    configure(settings.log_level, as_json=settings.log_format == "json")
    return run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())

"""A router's connections, opened on one stack."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.metrics import Meter

from libs.clock import Clock
from libs.contract.descriptors import Contract
from libs.eventlog.address import log_name
from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import open_key_ring
from libs.eventlog.lazy import LazyEventLog
from libs.eventlog.port import EventLog
from libs.eventlog.signed import SignedLog
from libs.flags.flagd import flagd_source
from libs.flags.memory import MemoryFlags
from libs.flags.openfeature import OpenFeatureSource, load_factory
from libs.flags.port import FlagSource, FlagsUnavailable
from libs.ownership.model import Store
from libs.process import open_basis
from libs.rpc.auth import read_token
from libs.rpc.signals import NO_SIGNALS, Signals
from libs.tls.process import Tls
from services.router.control.memory import MemoryControlStore
from services.router.control.postgres import PostgresControlStore
from services.router.control.sqlite import SqliteControlStore
from services.router.core.flags import FlagNames
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.observe import SettingCache
from services.router.flows.stores import Stores, open_store
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)

_OPEN_LOG_SECONDS = 3.0
"""Time that a start waits for an unavailable log. The process retries while it serves."""

AnyControlStore = SqliteControlStore | PostgresControlStore | MemoryControlStore


@dataclass(frozen=True, slots=True)
class Connections:
    control_store: AnyControlStore
    event_log: EventLog
    codes: Codes | None
    """Codes with which `event_log` signs; None if it does not."""
    stores: Stores
    cache: SettingCache
    switches: Switches
    contract: Contract
    meter: Meter
    tls: Tls = field(default_factory=Tls)
    signals: Signals = NO_SIGNALS


@asynccontextmanager
async def open_connections(settings: RouterSettings, clock: Clock) -> AsyncIterator[Connections]:
    """Raises BatonError if a connection that a start needs cannot be opened."""
    token = read_token(settings.token_file) if settings.token_file else None
    async with AsyncExitStack() as stack:
        tls, signals = await stack.enter_async_context(open_basis(settings))
        control_store = await stack.enter_async_context(open_control_store(settings.control_store, clock))
        lazy_log = LazyEventLog(settings.log_address)
        stack.push_async_callback(lazy_log.close)
        if away := await lazy_log.try_open(_OPEN_LOG_SECONDS):
            log.warning("event_log: unavailable at the start, retrying while serving: %s", away)
        keys = open_key_ring(settings.event_keys, clock) if settings.event_keys else None
        codes = Codes(lambda: keys.content, log_name(settings.event_log)) if keys is not None else None
        event_log = lazy_log if codes is None else SignedLog(lazy_log, codes)
        stores = {
            store: await stack.enter_async_context(open_store(store, address, token, tls.client, signals))
            for store, address in ((Store.A, settings.store_a), (Store.B, settings.store_b))
        }
        contract = Contract.load(settings.contract)
        switches = open_switches(settings, contract, clock)
        stack.callback(switches.close)
        cache = SettingCache(control_store, clock, switches, interval_seconds=settings.refresh_seconds)
        # Read the setting before serving, because calls are routed by its phase.
        await cache.refresh()
        try:
            await switches.refresh()
        except FlagsUnavailable as error:
            log.warning("flags: unavailable at the start, retrying while serving: %s", error)
        meter = signals.metrics.meter
        yield Connections(control_store, event_log, codes, stores, cache, switches, contract, meter, tls, signals)


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
    address = settings.flag_provider
    provider: FlagSource | None = None
    if address.startswith("flagd:"):
        provider = flagd_source(Path(address.removeprefix("flagd:")))
    elif address != "control-store":
        provider = OpenFeatureSource(f"provider {address}", load_factory(address))
    return Switches(names, MemoryFlags("control store"), provider, clock)

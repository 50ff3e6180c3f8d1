"""A router: its listeners, its features, and the calls of clients."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from libs.clock import Clock, SystemClock
from libs.identity.opening import ANYBODY, AUTH_SETTING, NONE, Identity, open_identity, with_own_calls
from libs.ownership.model import Store
from libs.rpc.auth import read_token
from libs.rpc.callers import SHARE as CALLER_SHARE
from libs.rpc.callers import CallerLimits
from libs.rpc.clients import Clients
from libs.rpc.forwarded import ForwardedPrincipal
from libs.rpc.gate import CONNECTION_SHARE, ServerLimits
from libs.rpc.refusals import measure_refusals
from libs.rpc.server import Server, ServerConfig, TypedService
from libs.settings import WrongSetting
from libs.tasks import Background, Loop
from services.router.api.control import URGENT
from services.router.api.proxy import Proxy
from services.router.features import FEATURES
from services.router.features.connections import Connections, open_connections
from services.router.features.operators import ANY_OPERATOR, Operators, kind_of, open_operators
from services.router.features.operators import SETTING as CONTROL_SETTING
from services.router.features.shared import SharedFlows
from services.router.features.xds import Xds, xds_feature, xds_server
from services.router.flows.calls.difference_book import DifferenceBook
from services.router.flows.calls.forward import Forward, ReadPolicy
from services.router.flows.calls.listing import Listing
from services.router.flows.calls.patience import Patience
from services.router.flows.calls.shadow import Shadow
from services.router.flows.calls.watch_streams import WatchStreams
from services.router.flows.calls.write_auditor import Auditor
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.handoff import Handoffs
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.observe import Observer
from services.router.flows.traffic import Traffic
from services.router.settings import RouterSettings

if TYPE_CHECKING:
    from libs.http.listener import HttpListener


class Router:
    """A router on open connections. The caller runs `loops` and calls `start`."""

    def __init__(
        self,
        settings: RouterSettings,
        connections: Connections,
        clock: Clock,
        identity: Identity = ANYBODY,
        operators: Operators = ANY_OPERATOR,
    ) -> None:
        name = settings.name or f"{socket.gethostname()}:{os.getpid()}"
        stores, control_store, contract = connections.stores, connections.control_store, connections.contract
        traffic, transfer = Traffic(), Transfer(stores)
        mover = Mover(stores, transfer, connections.cache, control_store, name, clock)
        observer = Observer(
            stores,
            connections.event_log,
            clock,
            setting=lambda: connections.cache.current,
            addresses={Store.B: len(settings.store_b.split(","))},
        )
        flows = SharedFlows(
            settings=settings,
            name=name,
            clock=clock,
            connections=connections,
            traffic=traffic,
            transfer=transfer,
            mover=mover,
            observer=observer,
            shadow=Shadow(
                contract,
                stores,
                connections.cache,
                observer,
                clock,
                book=DifferenceBook(control_store, name, clock),
            ),
            auditor=Auditor(stores, clock, settings.ledger_limits),
            clients=Clients(contract.schemas, clock),
            public_address=lambda: self.public.address,
            own_metadata=identity.own_metadata,
        )
        flows.add(FEATURES)
        xds = Xds(flows) if settings.xds else None
        if xds is not None:
            flows.add([lambda _: xds_feature(xds)])
        patience = Patience(traffic, settings.owner_patience_seconds, settings.caller_limits.share)
        self.writes = Background(settings.writes, "writes", lambda: patience.writes)
        proxy = _proxy(flows, patience, self.writes)
        control_api = flows.control_api()
        self.public = _public(settings, proxy, patience, identity, connections)
        self.control = _control(settings, control_api, operators, connections)
        self.internal = _internal(settings, proxy, patience, connections)
        self.http = _http(settings, connections, proxy, self.public, control_api, self.control, identity)
        self.console = _console(settings, control_api, self.control, clock)
        self.xds = xds_server(flows, xds, identity) if xds is not None else None
        measure_refusals(connections.meter, self._refused())
        self.loops = [*flows.loops, Loop("mover", mover.run_once), *identity.loops, *operators.identity.loops]

    def __str__(self) -> str:
        http = f" http={self.http.address}" if self.http is not None else ""
        internal = f" internal={self.internal.address}" if self.internal is not None else ""
        console = f" console={self.console.address}" if self.console is not None else ""
        xds = f" xds={self.xds.address}" if self.xds is not None else ""
        return f"public={self.public.address} control={self.control.address}{internal}{http}{console}{xds}"

    def _refused(self) -> dict[str, Mapping[str, int]]:
        """Refused calls by listener."""
        refused: dict[str, Mapping[str, int]] = {
            "public": self.public.gate.refused,
            "control": self.control.gate.refused,
        }
        if self.internal is not None:
            refused["internal"] = self.internal.gate.refused
        if self.http is not None:
            refused["http"] = self.http.hosts.refused
        if self.console is not None:
            refused["console"] = self.console.hosts.refused
        if self.xds is not None:
            refused["xds"] = self.xds.gate.refused
        return refused

    async def start(self) -> None:
        await self.control.start()
        if self.internal is not None:
            await self.internal.start()
        await self.public.start()
        if self.http is not None:
            await self.http.start()
            await self.http.set_serving(True)
        if self.console is not None:
            await self.console.start()
        if self.xds is not None:
            await self.xds.start()

    async def drain(self, timeout_seconds: float) -> None:
        """Ask clients to disconnect, and answer every call that still arrives, within the timeout."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_seconds
        listeners = [one for one in (self.public, self.internal, self.http, self.console) if one is not None]
        await asyncio.gather(*(listener.drain(timeout_seconds / 2) for listener in listeners))
        await self.writes.drain(max(end - clock(), 0.1))
        await self.control.drain(0.2)
        if self.xds is not None:
            # Last: its clients have learned from it that this router ends.
            await self.xds.drain(0.2)


@asynccontextmanager
async def open_router(settings: RouterSettings) -> AsyncIterator[Router]:
    """Open and start a router. Raises BatonError if a connection or a listener cannot be opened."""
    clock = SystemClock()
    identity = with_own_calls(await open_identity(settings, clock))
    operators = await open_operators(settings, clock)
    async with AsyncExitStack() as stack:
        connections = await stack.enter_async_context(open_connections(settings, clock))
        router = Router(settings, connections, clock, identity, operators)
        stack.push_async_callback(router.drain, settings.drain_seconds)
        await router.start()
        yield router


def _proxy(flows: SharedFlows, patience: Patience, writes: Background) -> Proxy:
    """The proxy for clients' calls."""
    settings, connections, clock = flows.settings, flows.connections, flows.clock
    stores, cache = connections.stores, connections.cache
    handoffs = Handoffs(flows.transfer, BucketMoves(flows.transfer), flows.traffic)
    policy = ReadPolicy(settings.stale_reads)
    return Proxy(
        connections.contract,
        Forward(stores, handoffs, flows.traffic, clock, policy, patience),
        Listing(stores, flows.traffic, policy, flows.shadow, clock, patience),
        cache,
        flows.traffic,
        writes,
        clock,
        flows.shadow,
        flows.auditor,
        settings.logged_phases,
        watching=WatchStreams(stores, cache, clock, settings.watch_patience_seconds),
        clients=flows.clients,
    )


def _public(
    settings: RouterSettings, proxy: Proxy, patience: Patience, identity: Identity, connections: Connections
) -> Server:
    limits = replace(_call_limits(settings, patience), connection_share=CONNECTION_SHARE, caller=settings.caller_limits)
    config = ServerConfig(
        settings.public,
        "public",
        limits,
        authenticator=identity.authenticator,
        auth_setting=AUTH_SETTING,
        tls=connections.tls.public,
        share_port=settings.share_ports,
        signals=connections.signals,
    )
    return Server(config, [proxy.service()])


def _internal(settings: RouterSettings, proxy: Proxy, patience: Patience, connections: Connections) -> Server | None:
    """The listener for calls that stores pass on, with the identities that they have verified. Raises WrongSetting."""
    if not settings.internal:
        return None
    if settings.token_file is None and settings.public_auth not in (None, NONE):
        raise WrongSetting(
            f"token_file: it is not set: the listener `internal` believes its callers who their clients are, and"
            f" public_auth = {settings.public_auth}; give the routers the stores' token"
        )
    share = 1.0 if settings.public_auth in (None, NONE) else settings.caller_limits.share
    config = ServerConfig(
        settings.internal,
        "internal",
        # A store has applied the limits of its callers; without identity, all of them would share those of its host.
        replace(_call_limits(settings, patience), caller=CallerLimits(share)),
        read_token(settings.token_file) if settings.token_file else None,
        "token_file",
        ForwardedPrincipal(required=True),
        tls=connections.tls.private,
        share_port=settings.share_ports,
        signals=connections.signals,
    )
    return Server(config, [proxy.service()])


def _call_limits(settings: RouterSettings, patience: Patience) -> ServerLimits:
    """The limits of a listener for calls of the contract."""
    return ServerLimits(
        settings.public_calls,
        waiting=lambda: patience.calls,
        streams=settings.watchers,
        default_deadline_seconds=settings.default_deadline_seconds,
        longest_deadline_seconds=settings.longest_deadline_seconds,
    )


def _control(settings: RouterSettings, api: TypedService, operators: Operators, connections: Connections) -> Server:
    config = ServerConfig(
        settings.control,
        "control",
        ServerLimits(urgent=URGENT, caller=CallerLimits(CALLER_SHARE)),
        operators.token,
        authenticator=operators.identity.authenticator,
        auth_setting=CONTROL_SETTING,
        tls=connections.tls.private,
        share_port=settings.share_ports,
        signals=connections.signals,
    )
    return Server(config, [api])


def _console(settings: RouterSettings, control_api: TypedService, control: Server, clock: Clock) -> HttpListener | None:
    if not settings.console:
        return None
    # As for HTTP below.
    from services.router.features.console import console_listener

    return console_listener(settings, control_api, control, clock)


def _http(
    settings: RouterSettings,
    connections: Connections,
    proxy: Proxy,
    public: Server,
    control_api: TypedService,
    control: Server,
    identity: Identity,
) -> HttpListener | None:
    if not settings.http:
        return None
    # Imported here, because the HTTP libraries cost memory and start time.
    from libs.http.opening import http_listener
    from services.router.api.tools import as_client, router_tools

    authenticate = as_client if kind_of(settings) in ("", NONE) else control.gate.authenticate

    return http_listener(
        settings.http,
        connections.contract,
        proxy.service(),
        public,
        connections.meter,
        more_tools=partial(router_tools, control_api, authenticate),
        identity=identity,
    )

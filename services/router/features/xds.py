"""The listener that gives clients direct routes by xDS: resources, health of the processes, authentication."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from opentelemetry.metrics import Meter

from libs.identity.none import NoAuthentication
from libs.identity.opening import Identity
from libs.identity.port import Authenticator
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2
from libs.rpc.gate import ServerLimits
from libs.rpc.server import Server, ServerConfig
from libs.settings import WrongSetting
from libs.tasks import Loop
from libs.telemetry.instruments import Reading, observe, observe_one
from libs.tls.hosts import is_loopback
from services.router.api.discovery import Discovery
from services.router.api.discovery_resources import ROUTER, STORE_CLUSTERS, Advertised, snapshot
from services.router.core.discovery import Snapshot
from services.router.core.routes import Routes
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.steering.endpoints import Endpoints
from services.router.settings import RouterSettings

REQUEST_BYTES = 64 * 1024


class Xds:
    """Direct routes for clients with xDS."""

    def __init__(self, flows: SharedFlows) -> None:
        settings, connections = flows.settings, flows.connections
        self._direct = flows.direct
        self._advertised = Advertised(
            connections.contract.service,
            settings.xds_envoy,
            settings.xds_certificate_provider,
            settings.tls_server_name,
        )
        groups = {
            STORE_CLUSTERS[Store.A]: lambda: settings.xds_store_a,
            STORE_CLUSTERS[Store.B]: lambda: settings.xds_store_b,
            ROUTER: lambda: settings.xds_routers or flows.public_address(),
        }
        self._endpoints = Endpoints(groups, connections.tls.client, self._take_endpoints)
        self._made: tuple[object, Snapshot] = (None, Snapshot())
        self.discovery = Discovery(self.snapshot, flows.direct.changes, flows.name)
        measure(
            connections.meter,
            lambda: self.discovery.streams,
            lambda: self.discovery.refused,
            lambda: flows.direct.current,
        )

    @property
    def loops(self) -> list[Loop]:
        return [self._direct.loop, *self._endpoints.loops]

    def snapshot(self) -> Snapshot:
        """The newest resources."""
        endpoints = dict(self._endpoints.serving)
        # If no router seems to serve, this one cannot reach the others: clients may.
        endpoints[ROUTER] = endpoints[ROUTER] or self._endpoints.known(ROUTER)
        basis = self._direct.current, endpoints
        if self._made[0] != basis:
            self._made = basis, snapshot(self._direct.current, endpoints, self._advertised)
        return self._made[1]

    def _take_endpoints(self) -> None:
        serving = self._endpoints.serving
        self._direct.serving = frozenset(store for store, group in STORE_CLUSTERS.items() if serving[group])
        self._direct.look()
        self._direct.changes.notify()

    def add_alerts(self, answer: control_pb2.GetStatusResponse) -> None:
        answer.alerts.extend([*self.discovery.alerts, *self._endpoints.alerts])


def xds_feature(xds: Xds) -> Feature:
    return Feature(loops=xds.loops, status=xds.add_alerts)


def xds_server(flows: SharedFlows, xds: Xds, identity: Identity) -> Server:
    """Raises WrongSetting."""
    settings, connections = flows.settings, flows.connections
    tls = connections.tls.public
    if not settings.xds_routers and _is_unspecified(settings.public):
        raise WrongSetting(
            f"xds_routers: it is not set, and public = {settings.public} is no address that clients can call: set the"
            " public addresses of all routers"
        )
    check_envoy(settings)
    verified = tls is not None and tls.material.ca is not None
    config = ServerConfig(
        settings.xds,
        "xds",
        ServerLimits(0, streams=settings.xds_streams, request_bytes=REQUEST_BYTES),
        authenticator=xds_authenticator(settings.xds, settings.xds_auth, identity, verified=verified),
        tls=tls,
        share_port=settings.share_ports,
    )
    return Server(config, [xds.discovery.service()])


def check_envoy(settings: RouterSettings) -> None:
    """Raises WrongSetting. Envoy ignores certificate providers: it would encrypt and check nothing."""
    if settings.xds_envoy and settings.xds_certificate_provider:
        raise WrongSetting(
            "xds_envoy: Envoys know no certificate provider: leave xds_certificate_provider empty at the routers that"
            " serve Envoys"
        )


def xds_authenticator(address: str, kind: str | None, identity: Identity, *, verified: bool) -> Authenticator:
    """`verified`: the listener requires a client's certificate. Raises WrongSetting."""
    if kind == "public":
        if identity.authenticator is None:
            raise WrongSetting("xds_auth: public: public_auth is not set")
        return identity.authenticator
    if kind == "mtls" and not verified:
        raise WrongSetting("xds_auth: mtls needs tls_certificate, tls_key and tls_public_client_ca")
    if kind is None and not is_loopback(address):
        raise WrongSetting(
            f"xds: {address} can be reached from other machines: set xds_auth to mtls or public, or to none if every"
            " client may know the addresses of stores and routers, or listen on 127.0.0.1"
        )
    return NoAuthentication()


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_unspecified
    except ValueError:
        return False


def direct_buckets(routes: Routes, store: Store) -> int:
    """Buckets of the method that has the most."""
    runs = routes.direct_at(store).values()
    return max((sum(run.end - run.first for run in some) for some in runs), default=0)


def measure(meter: Meter, streams: Callable[[], int], refused: Callable[[], int], direct: Callable[[], Routes]) -> None:
    """`streams`, `refused`: of the discovery."""

    def read_buckets() -> Iterable[Reading]:
        return [Reading(direct_buckets(direct(), store), {"store": store.value}) for store in Store]

    observe_one(meter, "baton.xds.streams", streams)
    observe_one(meter, "baton.xds.refused", refused)
    observe(meter, "baton.direct.buckets", read_buckets)

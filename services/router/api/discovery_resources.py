"""The router's direct routes and the addresses of the processes, as resources of xDS.

Clients of gRPC and Envoy get the same routes, clusters and endpoints; only their listeners differ. There are three
clusters: each store's, whose calls go to a router if no process of the store serves, and the routers'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from libs.ownership.model import Store
from libs.pb.baton.xds.v1 import xds_pb2 as pb
from libs.rpc.metadata import BUCKET
from services.router.core.discovery import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, Resource, Snapshot
from services.router.core.routes import Routes, RpcRoutes

ROUTER = "router"
"""Name of the routers' cluster."""
STORE_CLUSTERS = {Store.A: "store-a", Store.B: "store-b"}

_ROUTE_NAME = "baton"
_ENVOY_LISTENER = "baton-envoy"

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER_FILTER = "envoy.extensions.filters.http.router.v3.Router"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"

_EDS = 3
_V3 = 2
_MILLIONTHS = 2
"""Numbers of Envoy's enums: a cluster's type, an API version, a fraction's denominator."""

_MOST_REQUESTS = UInt32Value(value=1_000_000)
"""Clients' own limit of concurrent calls, watches among them, to one cluster. Their default is 1024; the limits that
count are the servers'."""

_ADS = pb.ConfigSource(ads=pb.Ads(), resource_api_version=_V3)

Endpoints = Mapping[str, Sequence[str]]
"""Serving addresses ("10.0.0.1:50061") by cluster."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """Inputs of the resources besides routes and endpoints."""

    service: str
    """Full name of the contract's service: the target of clients is xds:///SERVICE."""
    envoy: str = ""
    """Address where Envoys listen; "" for none."""
    certificate_provider: str = ""
    """Instance of a certificate provider in the clients' bootstrap; "" to leave the choice to the client's credentials.
    """
    server_name: str = ""
    """Name that certificates of stores and routers must have, if there is a provider; "" for any of the provider's CA.
    """


def snapshot(routes: Routes, endpoints: Endpoints, advertised: Advertised) -> Snapshot:
    """`endpoints`: of all clusters."""
    clusters = (*STORE_CLUSTERS.values(), ROUTER)
    found = {
        CLUSTERS: {name: _packed(_cluster(name, advertised)) for name in clusters},
        ENDPOINTS: {name: _packed(_endpoints(name, endpoints)) for name in clusters},
        LISTENERS: dict(_listeners(advertised)),
        ROUTES: {_ROUTE_NAME: _packed(_route_configuration(routes))},
    }
    return Snapshot(found, {type_url: _version(routes, some) for type_url, some in found.items()})


def _version(routes: Routes, resources: Mapping[str, Resource]) -> str:
    """The setting's generation, and a digest that is the same at every router with the same resources."""
    digest = blake2b(digest_size=6)
    for name, resource in resources.items():
        digest.update(name.encode() + b"\0" + resource.data)
    return f"{routes.generation}-{digest.hexdigest()}"


def _packed(message: Message, *, named_only: bool = False) -> Resource:
    return Resource(message.SerializeToString(deterministic=True), named_only)


def _any(kind: str, message: Message | None = None) -> pb.Packed:
    data = b"" if message is None else message.SerializeToString(deterministic=True)
    return pb.Packed(type_url=f"type.googleapis.com/{kind}", value=data)


def _listeners(advertised: Advertised) -> Iterator[tuple[str, Resource]]:
    manager = pb.HttpConnectionManager(
        stat_prefix="baton",
        rds=pb.Rds(config_source=_ADS, route_config_name=_ROUTE_NAME),
        http_filters=[pb.Filter(name="router", typed_config=_any(_ROUTER_FILTER))],
        # A watch may be silent for long. Servers notice dead connections by pings.
        stream_idle_timeout=Duration(),
    )
    packed = _any(_MANAGER, manager)
    name = advertised.service
    yield name, _packed(pb.Listener(name=name, api_listener=pb.ApiListener(api_listener=packed)), named_only=True)
    if advertised.envoy:
        chain = pb.FilterChain(filters=[pb.Filter(name="http", typed_config=packed)])
        listener = pb.Listener(name=_ENVOY_LISTENER, address=_address(advertised.envoy), filter_chains=[chain])
        yield _ENVOY_LISTENER, _packed(listener)


def _route_configuration(routes: Routes) -> pb.RouteConfiguration:
    everything = pb.Route(match=pb.RouteMatch(prefix=""), route=_to(ROUTER))
    found = [route for rpc in routes.rpcs if rpc.runs for route in _routes_of(rpc)]
    host = pb.VirtualHost(name="all", domains=["*"], routes=[*found, everything])
    return pb.RouteConfiguration(name=_ROUTE_NAME, virtual_hosts=[host])


def _routes_of(rpc: RpcRoutes) -> Iterator[pb.Route]:
    """The first route that matches decides: first the share for a router, then the runs."""
    if rpc.sampled_permille:
        share = pb.FractionalPercent(numerator=rpc.sampled_permille * 1000, denominator=_MILLIONTHS)
        match = pb.RouteMatch(path=rpc.path, runtime_fraction=pb.RuntimeFraction(default_value=share))
        yield pb.Route(match=match, route=_to(ROUTER))
    for run in rpc.runs:
        header = pb.HeaderMatcher(name=BUCKET, range_match=pb.Range(start=run.first, end=run.end))
        yield pb.Route(match=pb.RouteMatch(path=rpc.path, headers=[header]), route=_to(STORE_CLUSTERS[run.store]))


def _to(cluster: str) -> pb.RouteAction:
    # Without a timeout of Envoy's own, the caller's deadline counts.
    return pb.RouteAction(cluster=cluster, timeout=Duration())


def _cluster(name: str, advertised: Advertised) -> pb.Cluster:
    limits = pb.Thresholds(
        max_connections=_MOST_REQUESTS, max_pending_requests=_MOST_REQUESTS, max_requests=_MOST_REQUESTS
    )
    http2 = pb.HttpProtocolOptions(
        explicit_http_config=pb.ExplicitHttpConfig(http2_protocol_options=pb.Http2ProtocolOptions())
    )
    found = pb.Cluster(
        name=name,
        type=_EDS,
        eds_cluster_config=pb.EdsClusterConfig(eds_config=_ADS),
        connect_timeout=Duration(seconds=1),
        circuit_breakers=pb.CircuitBreakers(thresholds=[limits]),
    )
    found.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(_any(_HTTP_OPTIONS, http2))
    if advertised.certificate_provider:
        provider = pb.CertificateProvider(instance_name=advertised.certificate_provider)
        names = [pb.StringMatcher(exact=advertised.server_name)] if advertised.server_name else []
        validation = pb.CertificateValidationContext(
            ca_certificate_provider_instance=provider, match_subject_alt_names=names
        )
        common = pb.CommonTlsContext(validation_context=validation, tls_certificate_provider_instance=provider)
        context = pb.UpstreamTlsContext(common_tls_context=common)
        found.transport_socket.CopyFrom(pb.TransportSocket(name="tls", typed_config=_any(_TLS, context)))
    return found


def _endpoints(cluster: str, endpoints: Endpoints) -> pb.ClusterLoadAssignment:
    """The cluster's own processes first, then the routers. Priorities must have no gap."""
    names = [cluster] if cluster == ROUTER else [cluster, ROUTER]
    groups = [(name, endpoints[name]) for name in names if endpoints.get(name)]
    return pb.ClusterLoadAssignment(
        cluster_name=cluster,
        endpoints=[
            pb.LocalityEndpoints(
                locality=pb.Locality(region=name),
                lb_endpoints=[pb.LbEndpoint(endpoint=pb.Endpoint(address=_address(one))) for one in addresses],
                load_balancing_weight=UInt32Value(value=1),
                priority=priority,
            )
            for priority, (name, addresses) in enumerate(groups)
        ],
    )


def _address(address: str) -> pb.Address:
    host, _, port = address.rpartition(":")
    return pb.Address(socket_address=pb.SocketAddress(address=host.strip("[]"), port_value=int(port)))

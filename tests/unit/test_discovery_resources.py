"""Direct routes and addresses as resources of xDS."""

from __future__ import annotations

from typing import TypeVar

import pytest
from google.protobuf.message import Message

from libs.identity.none import NoAuthentication
from libs.identity.opening import ANYBODY, Identity
from libs.ownership.model import BUCKETS, Store
from libs.pb.baton.xds.v1 import xds_pb2 as pb
from libs.settings import WrongSetting
from services.router.api.discovery_resources import Advertised, snapshot
from services.router.core.discovery import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, Snapshot
from services.router.core.routes import NO_ROUTES, Routes, RpcRoutes, Run
from services.router.features.xds import check_envoy, direct_buckets, xds_authenticator
from services.router.settings import RouterSettings

GET, UPDATE = "/s/Get", "/s/Update"
SPLIT = (Run(0, 300, Store.B), Run(300, BUCKETS, Store.A))
ROUTED = Routes(7, (RpcRoutes(GET, SPLIT, 10), RpcRoutes(UPDATE, SPLIT[:1]), RpcRoutes("/s/List")))
PLACES = {"store-a": ("10.0.0.1:1",), "store-b": ("10.0.0.2:2", "10.0.0.3:2"), "router": ("[fd00::5]:5",)}

M = TypeVar("M", bound=Message)


def made(routes: Routes = ROUTED, places: object = None, advertised: Advertised | None = None) -> Snapshot:
    return snapshot(routes, PLACES if places is None else places, advertised or Advertised("s.Service"))  # type: ignore[arg-type]


def found(kind: type[M], type_url: str, name: str, now: Snapshot) -> M:
    return kind.FromString(now.resources[type_url][name].data)


def routes_of(now: Snapshot) -> list[tuple[str, str, int]]:
    """Path or prefix, "FIRST-END" or "", cluster, and the fraction in millionths, of each route."""
    (host,) = found(pb.RouteConfiguration, ROUTES, "baton", now).virtual_hosts
    shown = []
    for route in host.routes:
        header = route.match.headers[0].range_match if route.match.headers else None
        bounds = f" {header.start}-{header.end}" if header is not None else ""
        fraction = route.match.runtime_fraction.default_value.numerator
        shown.append((f"{route.match.path}{bounds}", route.route.cluster, fraction))
    return shown


def test_the_share_for_routers_comes_first_and_all_else_goes_to_a_router() -> None:
    assert routes_of(made()) == [
        ("/s/Get", "router", 10_000),
        ("/s/Get 0-300", "store-b", 0),
        ("/s/Get 300-1024", "store-a", 0),
        ("/s/Update 0-300", "store-b", 0),
        ("", "router", 0),
    ]
    assert routes_of(made(NO_ROUTES)) == [("", "router", 0)]


def test_a_stores_cluster_falls_back_to_the_routers_without_a_gap_in_the_priorities() -> None:
    def places(name: str, now: Snapshot) -> list[tuple[int, str, list[str]]]:
        groups = found(pb.ClusterLoadAssignment, ENDPOINTS, name, now).endpoints
        return [
            (
                group.priority,
                group.locality.region,
                [
                    f"{one.endpoint.address.socket_address.address}:{one.endpoint.address.socket_address.port_value}"
                    for one in group.lb_endpoints
                ],
            )
            for group in groups
        ]

    router = ["fd00::5:5"]
    assert places("store-b", made()) == [(0, "store-b", ["10.0.0.2:2", "10.0.0.3:2"]), (1, "router", router)]
    assert places("router", made()) == [(0, "router", router)]
    assert places("store-b", made(places={**PLACES, "store-b": ()})) == [(0, "router", router)]


def test_clients_of_grpc_and_envoys_have_listeners_of_their_own() -> None:
    without = made().resources[LISTENERS]
    assert {name: resource.named_only for name, resource in without.items()} == {"s.Service": True}
    now = made(advertised=Advertised("s.Service", "10.0.0.9:80"))
    envoy = found(pb.Listener, LISTENERS, "baton-envoy", now)
    assert (envoy.address.socket_address.address, envoy.address.socket_address.port_value) == ("10.0.0.9", 80)
    assert not now.resources[LISTENERS]["baton-envoy"].named_only


def test_tls_checks_the_common_name_by_the_clients_certificate_provider() -> None:
    assert not found(pb.Cluster, CLUSTERS, "store-a", made()).HasField("transport_socket")
    now = made(advertised=Advertised("s.Service", "", "provider", "baton.test"))
    for name in ("store-a", "store-b", "router"):
        socket = found(pb.Cluster, CLUSTERS, name, now).transport_socket
        common = pb.UpstreamTlsContext.FromString(socket.typed_config.value).common_tls_context
        assert [one.exact for one in common.validation_context.match_subject_alt_names] == ["baton.test"]
        assert common.validation_context.ca_certificate_provider_instance.instance_name == "provider"
        assert common.tls_certificate_provider_instance.instance_name == "provider"


def test_a_version_names_the_generation_and_changes_with_the_resources_alone() -> None:
    one, same, other = made(), made(), made(places={**PLACES, "store-b": ("10.0.0.2:2",)})
    assert one.versions == same.versions
    assert one.versions[ENDPOINTS] != other.versions[ENDPOINTS]
    assert one.versions[ROUTES] == other.versions[ROUTES]
    assert {version.partition("-")[0] for version in one.versions.values()} == {"7"}


def test_the_most_scattered_routes_fit_into_a_message_of_grpc() -> None:
    scattered = tuple(Run(bucket, bucket + 1, Store.A if bucket % 2 else Store.B) for bucket in range(BUCKETS))
    path = "/sandbox.v1.SandboxService/UndeleteSandbox"
    now = made(Routes(1, tuple(RpcRoutes(path, scattered, 10) for _ in range(16))))
    assert len(now.resources[ROUTES]["baton"].data) < 4 << 20


def test_the_metric_counts_the_buckets_of_the_method_with_the_most() -> None:
    assert [direct_buckets(ROUTED, store) for store in Store] == [BUCKETS - 300, 300]
    assert direct_buckets(NO_ROUTES, Store.A) == 0


IDENTITY = Identity(NoAuthentication())


@pytest.mark.parametrize(
    ("address", "kind", "identity", "verified", "trouble"),
    [
        ("10.0.0.5:7650", None, ANYBODY, True, "can be reached from other machines"),
        ("127.0.0.1:7650", "mtls", ANYBODY, False, "tls_public_client_ca"),
        ("127.0.0.1:7650", "public", ANYBODY, True, "public_auth is not set"),
    ],
)
def test_a_listener_without_the_authentication_that_it_needs_does_not_open(
    address: str, kind: str | None, identity: Identity, verified: bool, trouble: str
) -> None:
    with pytest.raises(WrongSetting, match=trouble):
        xds_authenticator(address, kind, identity, verified=verified)


def test_an_envoy_gets_no_tls_that_checks_nothing() -> None:
    settings = RouterSettings(store_a="a:1", store_b="b:1", control_store="memory:", event_log="memory:")
    for values in ({"xds_envoy": "127.0.0.1:80"}, {"xds_certificate_provider": "baton"}):
        check_envoy(settings.model_copy(update=values))
    with pytest.raises(WrongSetting, match="no certificate provider"):
        check_envoy(settings.model_copy(update={"xds_envoy": "127.0.0.1:80", "xds_certificate_provider": "baton"}))


@pytest.mark.parametrize(
    ("address", "kind", "verified"),
    [("127.0.0.1:7650", None, False), ("10.0.0.5:7650", "none", False), ("10.0.0.5:7650", "mtls", True)],
)
def test_a_listener_opens_where_its_authentication_is_a_decision(
    address: str, kind: str | None, verified: bool
) -> None:
    assert isinstance(xds_authenticator(address, kind, ANYBODY, verified=verified), NoAuthentication)
    assert xds_authenticator(address, "public", IDENTITY, verified=verified) is IDENTITY.authenticator

"""Construction of a process's HTTP listener, beside its public gRPC listener."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import Meter
from starlette.types import ASGIApp

from libs.contract.descriptors import Contract
from libs.contract.schemas import NEWEST
from libs.http import mcp_door
from libs.http.documents import documents
from libs.http.doors import Doors, Measure
from libs.http.gateway import Gateway
from libs.http.listener import HttpConfig, HttpListener
from libs.http.mcp_door import McpDoor
from libs.http.procedures import Procedures
from libs.http.protected import ProtectedResource
from libs.http.rest import RestDoor
from libs.http.tools import Tool
from libs.identity.opening import ANYBODY, Identity
from libs.rpc.server import RawService, Server
from libs.telemetry.instruments import histogram

SETTING = "http"
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})

MoreTools = Callable[[Gateway], Iterable[Tool]]
"""Makes the tools that a process has in addition to its contract's."""


def http_listener(
    address: str,
    contract: Contract,
    service: RawService,
    public: Server,
    meter: Meter,
    *,
    default_schema: int = NEWEST,
    more_tools: MoreTools = lambda _: (),
    identity: Identity = ANYBODY,
) -> HttpListener:
    """Build the listener of the service that `public` serves, with its limits and its authentication; the caller starts
    it. Raises UnfitContract, UnfitTemplate, CannotListen."""
    public.check_exposure(SETTING, address)
    gateway = Gateway(contract, service, public.gate, default_schema)
    procedures = Procedures(gateway)
    resource = ProtectedResource(mcp_door.PATH, identity.issuer, identity.public_url) if identity.issuer else None
    mcp = McpDoor(gateway, more_tools(gateway), resource)
    paths: dict[str, ASGIApp] = {
        procedures.prefix: procedures,
        **dict.fromkeys(mcp_door.PATHS, mcp),
        **documents(contract),
        **(dict.fromkeys(resource.paths, resource) if resource is not None else {}),
    }
    doors = Doors(RestDoor(gateway), lambda: listener.serving, measured(meter), paths)
    config = HttpConfig(
        address, SETTING, tls=public.tls, host_share=public.gate.caller_share, share_port=public.share_port
    )
    listener = HttpListener(config, doors, [mcp.run])
    return listener


def measured(meter: Meter) -> Measure:
    """Source of name and attributes: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/."""
    duration = histogram(meter, "http.server.request.duration")

    def measure(verb: str, route: str, code: int, seconds: float) -> None:
        # A stranger can send any word as the method, and could create unlimited metrics with it.
        verb = verb if verb in _VERBS else "_OTHER"
        duration.record(seconds, {"http.request.method": verb, "http.route": route, "http.response.status_code": code})

    return measure

"""Opens the HTTP listener of a process, beside its public gRPC listener."""

from __future__ import annotations

from opentelemetry.metrics import Meter

from libs.contract.descriptors import Contract
from libs.contract.schemas import NEWEST
from libs.http.doors import Doors, Measure
from libs.http.gateway import Gateway
from libs.http.listener import HttpConfig, HttpListener
from libs.http.procedures import Procedures
from libs.http.rest import RestDoor
from libs.rpc.server import RawService, Server

SETTING = "http"


def http_listener(
    address: str, contract: Contract, service: RawService, public: Server, meter: Meter, *, default_schema: int = NEWEST
) -> HttpListener:
    """For the service that `public` serves, with its limits. Not started yet. Raises UnfitContract, UnfitTemplate."""
    gateway = Gateway(contract, service, public.gate, default_schema)
    procedures = Procedures(gateway)
    paths = {procedures.prefix: procedures}
    doors = Doors(RestDoor(gateway), lambda: listener.serving, measured(meter), paths)
    listener = HttpListener(HttpConfig(address, SETTING), doors)
    return listener


def measured(meter: Meter) -> Measure:
    """Source of name and attributes: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/."""
    duration = meter.create_histogram("http.server.request.duration", "s", "Duration of HTTP requests.")

    def measure(verb: str, route: str, code: int, seconds: float) -> None:
        duration.record(seconds, {"http.request.method": verb, "http.route": route, "http.response.status_code": code})

    return measure

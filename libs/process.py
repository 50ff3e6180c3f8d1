"""Common settings of Baton's processes, their start and their end."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from opentelemetry.metrics import Meter
from pydantic import AfterValidator, Field

from libs.errors import BatonError
from libs.eventlog.address import LogAddress, check_log_url
from libs.eventlog.security import KafkaSecurity
from libs.identity.settings import IdentitySettings
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.rpc.callers import SHARE, CallerLimits
from libs.rpc.limits import REQUEST_BYTES, raise_open_files
from libs.rpc.signals import Signals
from libs.settings import USAGE_EXIT_CODE, WrongSetting
from libs.telemetry.instruments import observe_one
from libs.telemetry.metrics import open_metrics
from libs.telemetry.otlp import Receiver
from libs.telemetry.tracing import open_tracing
from libs.tls.process import Tls, TlsPaths, open_tls

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")
_FAILED_EXIT_CODE = 1


def check_address(value: str) -> str:
    """A host and port, "127.0.0.1:50051". Raises ValueError."""
    found = _ADDRESS.fullmatch(value)
    if found is None or int(found[1]) > 65535:
        raise ValueError("give host:port, such as 127.0.0.1:50051")
    return value


def check_optional_address(value: str) -> str:
    """Like `check_address`, but "" (no address) is valid. Raises ValueError."""
    return check_address(value) if value else value


def check_endpoint(value: str) -> str:
    """An http or https URL of host and port only, or "". Raises ValueError."""
    scheme, _, address = value.partition("://")
    if value and scheme not in ("http", "https"):
        raise ValueError("give http://host:port or https://host:port")
    check_optional_address(address)
    return value


def check_interval(value: float) -> float:
    """Seconds, or 0 for never. Raises ValueError."""
    if value and not 1 <= value <= 3600:
        raise ValueError("give 1 to 3600 seconds, or 0 for never")
    return value


def check_optional_addresses(value: str) -> str:
    """Like `check_addresses`, but "" (no address) is valid. Raises ValueError."""
    return check_addresses(value) if value else value


def check_addresses(value: str) -> str:
    """Addresses of one or several processes of a service: "10.0.0.1:50061,10.0.0.2:50061". Raises ValueError.

    Several must be IP addresses of one family. For several processes behind one name, give only the name.
    """
    parts = value.split(",")
    for part in parts:
        check_address(part)
    if len(parts) > 1 and len({_family(part) for part in parts}) > 1:
        raise ValueError("give IPv4 addresses or IPv6 addresses, not both")
    return value


def _family(address: str) -> int:
    """4 or 6. Raises ValueError for a name."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(
            f"{host!r} is a name: of several addresses each is an IP address such as 10.0.0.1:50061; or give one name"
            " alone, which may resolve to several processes"
        ) from None


Address = Annotated[str, AfterValidator(check_address)]
Addresses = Annotated[str, AfterValidator(check_addresses)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class ProcessSettings(IdentitySettings):
    event_log: Annotated[str, AfterValidator(check_log_url)]
    """The event log that both stores share: kafka://host:port/topic, sqlite:///path on one machine, or memory: in one
    process."""
    event_log_partitions: Annotated[int, Field(ge=1, le=1024)] = 16
    """Partitions of the event log. All processes need the same number."""
    event_log_create: bool = False
    """Create the topic at the start if it is missing."""
    event_log_replication_factor: Annotated[int, Field(ge=1, le=16)] = 3
    """Replicas of a topic that this process creates."""
    event_log_min_insync_replicas: Annotated[int, Field(ge=1, le=16)] = 2
    """In-sync replicas that must confirm an event, for a topic that this process creates."""

    event_keys: Path | None = None
    """TOML file with the keys of events' authentication codes. A router with keys signs all events. The file is read
    again when it changes."""
    event_log_security: Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"] = "PLAINTEXT"
    """Security protocol of Kafka's listener. SASL_PLAINTEXT is for brokers on the same machine only."""
    event_log_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = ""
    """How this process authenticates itself to Kafka, with SASL_SSL or SASL_PLAINTEXT."""
    event_log_user: str = ""
    """User name at Kafka."""
    event_log_password_file: Path | None = None
    """File with the user's password at Kafka; with OAUTHBEARER, with the token. It is read again for each new client of
    Kafka, a token for each new connection."""
    event_log_ca: Path | None = None
    """PEM file with the CA of Kafka's certificates. Empty: the CAs of the system."""
    event_log_certificate: Path | None = None
    """PEM file with this process's certificate for Kafka, if Kafka requires one."""
    event_log_key: Path | None = None
    """PEM file with the key of that certificate."""

    http: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address of the HTTP listener (REST, Connect, gRPC-Web, MCP), host:port. Empty: no HTTP listener."""

    metrics: Annotated[str, AfterValidator(check_optional_address)] = ""
    """Address where Prometheus reads the metrics, host:port. Empty: the process keeps no metrics."""

    caller_percent: Annotated[float, Field(gt=0, le=100)] = 100 * SHARE
    """Share of a public listener that one caller may use, in percent of its calls, watches and HTTP connections; 100:
    all. A caller is a principal; without one, a host. Set it to 100 if all clients come through one proxy and have no
    identity."""
    caller_calls: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Calls in flight of one caller at a public listener; further calls fail with LIMIT_CALLS. 0: its share."""
    caller_watches: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Watches in flight of one caller at a public listener; further watches fail with LIMIT_STREAMS. 0: its share."""
    caller_request_bytes: Annotated[int, Field(ge=REQUEST_BYTES)] = 32 << 20
    """Size of the requests of one caller that are in flight; further calls fail with LIMIT_REQUEST_BYTES."""
    caller_rate: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Calls and watches per second of one caller at a public listener, on average; further calls fail with LIMIT_RATE.
    0: no limit."""
    caller_burst: Count = 100
    """Calls that a caller may send at once, before caller_rate applies."""

    tls_certificate: Path | None = None
    """PEM file with the certificate of this process and its chain. With it, every listener of the process uses TLS, and
    the process shows it to the other processes. It is read again when it changes."""
    tls_key: Path | None = None
    """PEM file with the key of the certificate, without a passphrase, not readable by every user."""
    tls_client_ca: Path | None = None
    """PEM file with the CA of the other processes and operators. With it, the internal and control listeners refuse
    clients without a certificate from this CA."""
    tls_public_client_ca: Path | None = None
    """PEM file with the CA of the clients. With it, the public and HTTP listeners refuse clients without a certificate
    from this CA."""
    tls_ca: Path | None = None
    """PEM file with the CA of the other processes' listeners. With it, this process calls them over TLS only and checks
    that their certificates name the host of their address."""
    tls_server_name: str = ""
    """Name that the certificates of the other processes have, if it is not the host of their address. Required for
    several addresses in one setting. Empty: the host."""

    otlp_endpoint: Annotated[str, AfterValidator(check_endpoint)] = ""
    """Receiver of traces by OTLP over gRPC: http://host:4317 or https://host:4317. Empty: no traces."""
    otlp_metrics_seconds: Annotated[float, AfterValidator(check_interval)] = 0.0
    """Interval at which this process also sends its metrics to that receiver: 1 to 3600. 0: it sends none."""
    otlp_ca: Path | None = None
    """PEM file with the CA of an https receiver. Empty: the CAs of the system."""
    trace_percent: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Share of the traces that begin at this process and are recorded. A caller that records its own trace decides for
    all processes behind it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines that are written, to stderr."""
    log_format: Literal["text", "json"] = "text"
    """Form of a log line."""
    log_calls_percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Share of the calls served that get a log line, with method, status and duration."""

    @property
    def caller_limits(self) -> CallerLimits:
        return CallerLimits(
            self.caller_percent / 100,
            self.caller_calls,
            self.caller_watches,
            self.caller_request_bytes,
            self.caller_rate,
            self.caller_burst,
        )

    @property
    def tls_paths(self) -> TlsPaths:
        return TlsPaths(
            self.tls_certificate,
            self.tls_key,
            self.tls_client_ca,
            self.tls_public_client_ca,
            self.tls_ca,
            self.tls_server_name,
        )

    @property
    def log_address(self) -> LogAddress:
        return LogAddress(
            self.event_log,
            self.event_log_partitions,
            self.event_log_create,
            self.event_log_replication_factor,
            self.event_log_min_insync_replicas,
            KafkaSecurity(
                self.event_log_security,
                self.event_log_sasl_mechanism,
                self.event_log_user,
                self.event_log_password_file,
                self.event_log_ca,
                self.event_log_certificate,
                self.event_log_key,
            ),
        )


@asynccontextmanager
async def open_basis(settings: ProcessSettings) -> AsyncIterator[tuple[Tls, Signals]]:
    """The certificates of the process and its signals. Raises TlsUnfit, CannotExport, WrongSetting."""
    program = settings.model_config.get("env_prefix", "").rstrip("_").lower()
    instance = f"{socket.gethostname()}:{os.getpid()}"
    endpoint, seconds = settings.otlp_endpoint, settings.otlp_metrics_seconds
    if seconds and not endpoint:
        raise WrongSetting(f"otlp_metrics_seconds: {seconds:g} needs otlp_endpoint, the address of the receiver")
    receiver = Receiver(endpoint, program, instance, settings.otlp_ca) if endpoint else None
    async with (
        open_tls(settings.tls_paths) as tls,
        open_metrics(settings.metrics, tls.metrics_context(), program, receiver, seconds) as metrics,
        open_tracing(receiver, settings.trace_percent / 100) as spans,
    ):
        measure_tls(metrics.meter, tls)
        yield tls, Signals(metrics, spans, settings.log_calls_percent / 100)


def measure_tls(meter: Meter, tls: Tls) -> None:
    """Export the state of the certificates. Without one there is no value."""
    observe_one(meter, "baton.tls.certificate.days", lambda: tls.days_left)
    observe_one(meter, "baton.tls.reload.failing", lambda: len(tls.troubles) if tls.has_files else None)


def certificate_of(tls: Tls) -> telemetry_pb2.Certificate | None:
    """The state of the process's certificate, for its status; None without TLS."""
    if tls.days_left is None and not tls.troubles:
        return None
    return telemetry_pb2.Certificate(days=tls.days_left, reload_trouble="; ".join(tls.troubles))


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _spare_collections() -> None:
    """Spare the garbage collector unnecessary work.

    Imported modules live as long as the process, so the collector need not scan them repeatedly. A batch of records
    creates some ten thousand objects at once, none of them in a cycle. With Python's first threshold of 700, a seventh
    of a store's time in a copy went into the search for cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the event loop of a process: libuv's where the package is installed, which it is not for every Python; else
    asyncio's own (None)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> int:
    """Run a process's main coroutine and return its exit code. A fatal error is one line in the log.

    Files that the process creates (databases, logs, snapshots) are readable for its own user only, since they hold
    clients' data.
    """
    os.umask(0o077)
    raise_open_files()
    _spare_collections()
    try:
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(main)
    except WrongSetting as error:
        log.error("%s", error)
        return USAGE_EXIT_CODE
    except BatonError as error:
        log.error("%s", error)
        return _FAILED_EXIT_CODE
    except BaseExceptionGroup as group:
        own, _ = group.split(BatonError)
        if own is not None and len(own.exceptions) == len(group.exceptions):
            for one in own.exceptions:
                log.error("%s", one)
            if all(isinstance(one, WrongSetting) for one in own.exceptions):
                return USAGE_EXIT_CODE
        else:
            log.critical("a part of the process failed", exc_info=group)
        return _FAILED_EXIT_CODE
    return 0

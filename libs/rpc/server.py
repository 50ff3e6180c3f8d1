"""A gRPC server: raw and generated services behind one admission, deadline rule, error mapping and drain.

Handlers take bytes and return bytes; generated servicers are wrapped to do the same. So every call of every service
passes the listener's `Gate`. Health and reflection stand beside it, with limits of their own. Health is open to
everyone; reflection authenticates its callers if calls do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.identity.port import Authenticator
from libs.rpc import goaway, reflection, standard
from libs.rpc.errors import Context
from libs.rpc.gate import Gate, Handler, ServerLimits, Stream
from libs.rpc.limits import HARD_MESSAGE_BYTES, METADATA_BYTES, REQUEST_SLACK_BYTES, most_connections
from libs.rpc.signals import NO_SIGNALS, Signals
from libs.rpc.tls import server_credentials
from libs.tls.files import TlsFiles
from libs.tls.hosts import is_loopback

log = logging.getLogger(__name__)

_BACKSTOP_CALLS = 8192
"""Received calls beyond the listener's limits, which wait to be refused with a reason."""

_CONNECTION_STREAMS = _BACKSTOP_CALLS // 2
"""Calls and streams on one connection, if the listener's limits are not higher."""

_LOOK_SECONDS = 0.02
"""Interval between two checks of a draining listener's connections."""
_QUIET_SECONDS = 0.5
"""Time without calls, after GOAWAY on every connection, after which no more calls are expected. Clients that still hold
an answered call keep their connection open."""
_ENCRYPTED_SECONDS = 1.0
"""Time for clients of an encrypted listener to leave when its health ends. Then the core sends GOAWAY, and ends calls
that arrive at that moment with a bare CANCELLED."""


class CannotListen(BatonError):
    """The listener could not be opened."""


@dataclass(frozen=True, slots=True)
class RawService:
    """A service of bytes: full name, and a handler for each method ("GetSandbox")."""

    name: str
    methods: Mapping[str, Handler]
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """Methods that stream their answers."""


@dataclass(frozen=True, slots=True)
class TypedService:
    """A generated service: full name, servicer, and the generated function that registers it."""

    name: str
    servicer: Any
    register: Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Address and limits of a server. `setting`: name of the setting that holds the address."""

    address: str
    setting: str
    limits: ServerLimits = field(default_factory=ServerLimits)
    token: bytes | None = None
    """Token that every call must carry. None: no token."""
    token_setting: str = ""
    """Name of the token's setting, for an internal listener: beyond loopback it needs a token."""
    authenticator: Authenticator | None = None
    """None if every caller is anonymous."""
    auth_setting: str = ""
    """Name of the authenticator's setting, for a listener of clients or operators: beyond loopback it needs one, or a
    token."""
    tls: TlsFiles | None = None
    """None: without TLS."""
    clock: Clock | None = None
    """Clock of the callers' rates; None for the system's."""
    connections: int = field(default_factory=most_connections)
    """Most connections; further ones are closed at once."""
    share_port: bool = False
    """Other processes may listen on the same address."""
    signals: Signals = NO_SIGNALS

    @property
    def connection_streams(self) -> int:
        """HTTP/2's limit of calls and streams on one connection.

        Far above the gate's limits: up to here a call is refused with a reason. Beyond it a client waits, or gets a
        bare UNAVAILABLE if it has not read this limit yet.
        """
        return max(_CONNECTION_STREAMS, 2 * (self.limits.calls + self.limits.streams))


OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", HARD_MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    # Equal to the soft limit: between the two, gRPC refuses calls at random.
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    # Clients ping every second. A server that expects fewer pings sends GOAWAY.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A client that connects and never speaks holds a connection for this long.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Calls that no handler has taken yet. Above the first number, the core ends some of them with a bare CANCELLED.
    ("grpc.server.max_pending_requests", _BACKSTOP_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * _BACKSTOP_CALLS),
)


class _Collector:
    """A stand-in for a server that collects the handlers of a generated service."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore the second form of the same handlers."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.handlers.update(handlers)


def raw_service(service: TypedService) -> RawService:
    """Wrap a generated service as one of bytes. Raises ValueError if a method takes a stream of requests."""
    collector = _Collector()
    service.register(service.servicer, collector)
    methods, streams = {}, {}
    for name, handler in collector.handlers.items():
        if handler.request_streaming:
            raise ValueError(f"{service.name}/{name} takes a stream: only methods of one request are served")
        if handler.response_streaming:
            streams[name] = partial(_stream_typed, handler)
        else:
            methods[name] = partial(_call_typed, handler)
    return RawService(service.name, methods, streams)


def _full_names(services: list[RawService]) -> dict[str, str]:
    """Full names of the methods, by their own. A listener serves no two methods of one name."""
    return {name: f"{service.name}/{name}" for service in services for name in (*service.methods, *service.streams)}


async def _call_typed(handler: Any, request: bytes, context: Context) -> bytes:
    answer: bytes = handler.response_serializer(await handler.unary_unary(_parsed(handler, request), context))
    return answer


async def _stream_typed(handler: Any, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
    async with aclosing(handler.unary_stream(_parsed(handler, request), context)) as answers:
        async for answer in answers:
            yield handler.response_serializer(answer)


def _parsed(handler: Any, request: bytes) -> Any:
    try:
        return handler.request_deserializer(request)
    except DecodeError as error:
        raise InvalidField("request", f"{len(request)} bytes", f"a message of this method: {error}") from None


class Server:
    """A listener that serves from `start` to `drain` and reports its state by health."""

    def __init__(self, config: ServerConfig, services: list[RawService | TypedService]) -> None:
        self._config = config
        raw = [raw_service(service) if isinstance(service, TypedService) else service for service in services]
        calls = config.signals.served_by(config.setting, _full_names(raw), private=bool(config.token_setting))
        self.gate = self._gate = Gate(config.limits, config.token, config.authenticator, config.clock, calls)
        """Gate for calls of the same services that arrive by other doors."""
        self._health = standard.Health()
        self._names = [service.name for service in services]
        self._server = grpc.aio.server(
            options=(
                *OPTIONS,
                # Unless it is wanted, two processes must not share one port in silence.
                ("grpc.so_reuseport", int(config.share_port)),
                # Size after decompression. A request within the slack is refused with the field and the limit.
                ("grpc.max_receive_message_length", config.limits.request_bytes + REQUEST_SLACK_BYTES),
                ("grpc.max_concurrent_streams", config.connection_streams),
                ("grpc.max_allowed_incoming_connections", config.connections),
            ),
            # Only against floods that the gate cannot answer: the core refuses without a reason.
            maximum_concurrent_rpcs=2 * config.limits.calls + config.limits.streams + _BACKSTOP_CALLS,
        )
        for service in raw:
            self._add(service)
        self._server.add_generic_rpc_handlers((standard.handlers(self._health),))
        self._reflection = reflection.Reflection(
            [*self._names, health.SERVICE_NAME, *reflection.NAMES],
            self._gate.authenticate if config.auth_setting else None,
        )
        self._server.add_generic_rpc_handlers(reflection.handlers(self._reflection))
        self._draining: asyncio.Task[int] | None = None
        self.port = 0

    def __repr__(self) -> str:
        draining = " draining" if self._gate.draining else ""
        return f"<Server {self._config.address} in_flight={self._gate.in_flight}{draining}>"

    @property
    def in_flight(self) -> int:
        """Calls in progress, without health and reflection."""
        return self._gate.in_flight

    @property
    def tls(self) -> TlsFiles | None:
        return self._config.tls

    @property
    def share_port(self) -> bool:
        return self._config.share_port

    @property
    def streams(self) -> int:
        """Streams in progress."""
        return self._gate.streams

    @property
    def address(self) -> str:
        """Address with the port that the system assigned if the setting's is 0."""
        host, _, port = self._config.address.rpartition(":")
        return f"{host}:{self.port}" if port == "0" else self._config.address

    async def start(self, *, serving: bool = True) -> None:
        """Listen. If `serving` is False, health reports NOT_SERVING until `set_serving`. Raises CannotListen."""
        config = self._config
        if config.token_setting and config.token is None and not is_loopback(config.address):
            raise CannotListen(
                f"{config.setting}: {config.address} can be reached from other machines: set {config.token_setting},"
                " or listen on 127.0.0.1"
            )
        self.check_exposure(config.setting, config.address)
        await self.set_serving(serving)
        try:
            if config.tls is None:
                self.port = self._server.add_insecure_port(config.address)
            else:
                self.port = self._server.add_secure_port(config.address, server_credentials(config.tls))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise CannotListen(
                f"{config.setting}: cannot listen on {config.address}: the port is in use or the host is not this"
                " machine's; stop the process that uses it or set another address"
            )
        await self._server.start()

    def check_exposure(self, setting: str, address: str) -> None:
        """Check a listener of this server's services. Beyond loopback, the absence of authentication must be a
        decision. Raises CannotListen."""
        config = self._config
        is_open = config.authenticator is None and config.token is None
        if config.auth_setting and is_open and not is_loopback(address):
            raise CannotListen(
                f"{setting}: {address} can be reached from other machines: set {config.auth_setting} to jwt, mtls or"
                " tokens, or to none if every client may read and change everything, or listen on 127.0.0.1"
            )

    async def set_serving(self, serving: bool) -> None:
        """Set the health of the server and of each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def drain(self, timeout_seconds: float) -> int:
        """Report NOT_SERVING, send clients away, serve calls that still arrive, close. Returns the number of calls that
        were cut off.

        Streams have no end of their own: they end when the drain begins.
        """
        await self._health.enter_graceful_shutdown()
        self._gate.draining = True
        self._gate.close_streams()
        self._reflection.end()
        if self._draining is None:
            # A single task, which callers cannot cancel, stops the core once. A second, concurrent stop can make the
            # core use a freed server and crash the process.
            self._draining = asyncio.create_task(self._drain(timeout_seconds))
        return await asyncio.shield(self._draining)

    async def _drain(self, timeout_seconds: float) -> int:
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_seconds
        await self._health.end_watches()
        encrypted = self._config.tls is not None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(end, clock() + _ENCRYPTED_SECONDS) if encrypted else end):
                await self._send_clients_away(encrypted)
        stop: asyncio.Task[None] | None = None
        if encrypted:
            # Only the core can send GOAWAY here. It serves the calls in progress until the end.
            stop = asyncio.create_task(self._server.stop(max(end - clock(), 0.0)))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._gate.idle.wait()
        left = self.in_flight
        if left:
            log.warning("%s: %d call(s) cut off after %g s", self._config.address, left, timeout_seconds)
        await (stop or self._server.stop(max(end - clock(), 0.0)))
        return left

    async def _send_clients_away(self, encrypted: bool) -> None:
        """Return when no call is in progress and none can arrive: the last connection has closed or is quiet."""
        clock = asyncio.get_running_loop().time
        sent: set[goaway.Peer] = set()
        seen, quiet_since = (-1, -1), clock()
        goaway.refuse_connections(self.port)
        while (connections := goaway.send_away(self.port, sent, encrypted)) or not self._gate.idle.is_set():
            unsent = connections > len(sent) and not encrypted
            if (self._gate.arrived, len(sent)) != seen or not self._gate.idle.is_set() or unsent:
                seen, quiet_since = (self._gate.arrived, len(sent)), clock()
            elif clock() - quiet_since >= _QUIET_SECONDS:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _add(self, service: RawService) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.stream_unary_rpc_method_handler(partial(self._gate.answer, handler, name))
            for name, handler in service.methods.items()
        }
        for name, stream in service.streams.items():
            handlers[name] = grpc.stream_stream_rpc_method_handler(partial(self._gate.stream, stream, name))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))

"""TLS of gRPC's servers and channels, with certificates that change while they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from libs.tls.files import TlsFiles, TlsUnfit
from libs.tls.process import ClientTls

_TEXTS = (
    ("WRONG_VERSION_NUMBER", "the listener does not use TLS"),
    (
        "Hostname Verification",
        "the listener's certificate has another name: call it by that, or set tls_server_name",
    ),
    ("certificate has expired", "the listener's certificate has expired"),
    ("CERTIFICATE_VERIFY_FAILED", "the listener's certificate is not from the CA in tls_ca"),
    ("Socket closed", "the listener closed the connection: does it use TLS, or require a client's certificate?"),
)
"""Parts of gRPC's texts, and their meaning."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials whose next handshake uses the files' present contents. With a CA, clients need a certificate."""
    given = files.generation

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        # Called in a thread of the core. The contents are replaced as a whole, before the generation.
        if files.generation == given:
            return None
        given = files.generation
        return _configuration(files)

    required = files.material.ca is not None
    return grpc.dynamic_ssl_server_credentials(_configuration(files), changed, required)  # type: ignore[arg-type]


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    material = files.material
    if material.key is None or material.certificate is None:
        raise TypeError("a listener with TLS has a certificate")
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    material = files.material
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)


def name_options(server_name: str) -> tuple[tuple[str, str], ...]:
    """Options of a channel that checks this name; none for ""."""
    return (("grpc.ssl_target_name_override", server_name),) if server_name else ()


@contextmanager
def open_channel(address: str, tls: ClientTls | None, options: tuple[tuple[str, Any], ...]) -> Iterator[grpc.Channel]:
    """A channel for a short-lived program without an event loop."""
    if tls is None:
        opened = grpc.insecure_channel(address, options)
    else:
        named = (*options, *name_options(tls.server_name))
        opened = grpc.secure_channel(address, channel_credentials(tls.files), named)
    with opened as channel:
        yield channel


def check_addresses(address: str, tls: ClientTls) -> None:
    """Raises TlsUnfit for several addresses without a name: gRPC checks one name for all of them."""
    if "," in address and not tls.server_name:
        raise TlsUnfit(
            f"tls_server_name: it is not set; {address} are several processes: set the name that all their certificates"
            " have"
        )


def meaning(details: str) -> str:
    """Meaning of gRPC's text for a connection that failed over TLS; "" if it is about something else."""
    return next((found for text, found in _TEXTS if text in details), "")


class ReloadingChannel(grpc.aio.Channel):
    """A channel that a new one replaces when its certificates change: gRPC's credentials of a channel are fixed.

    New calls use the new channel. The old one closes after its last call, so no call is lost; there are at most as many
    old channels as calls that have lasted since a change.
    """

    def __init__(self, files: TlsFiles, make: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._files = files
        self._make = make
        self._generation = files.generation
        self._current = _Counted(make(channel_credentials(files)))
        self._old: set[_Counted] = set()

    def current(self) -> _Counted:
        if self._generation != self._files.generation:
            self._generation = self._files.generation
            old, self._current = self._current, _Counted(self._make(channel_credentials(self._files)))
            self._old.add(old)
            old.retire(self._old.discard)
        return self._current

    def unary_unary(self, method: str, *arguments: Any, **named: Any) -> Any:
        return _Callable(self, "unary_unary", method, arguments, named)

    def unary_stream(self, method: str, *arguments: Any, **named: Any) -> Any:
        return _Callable(self, "unary_stream", method, arguments, named)

    def stream_unary(self, method: str, *arguments: Any, **named: Any) -> Any:
        return _Callable(self, "stream_unary", method, arguments, named)

    def stream_stream(self, method: str, *arguments: Any, **named: Any) -> Any:
        return _Callable(self, "stream_stream", method, arguments, named)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        for one in (self._current, *self._old):
            await one.channel.close(grace)

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Counted:
    """A channel and its calls in progress."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._calls = 0
        self._closed: Callable[[_Counted], None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def begin(self, call: grpc.aio.Call) -> None:
        self._calls += 1
        call.add_done_callback(self._end)

    def retire(self, closed: Callable[[_Counted], None]) -> None:
        """Close after the last call. `closed` is called then."""
        self._closed = closed
        self._close_if_idle()

    def _end(self, _: object) -> None:
        self._calls -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closed is not None and not self._calls and self._closing is None:
            self._closing = asyncio.create_task(self._close(self._closed))

    async def _close(self, closed: Callable[[_Counted], None]) -> None:
        await self.channel.close()
        closed(self)


class _Callable:
    """A method of a channel that may be replaced between two calls."""

    def __init__(
        self, owner: ReloadingChannel, kind: str, method: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._given = (method, *arguments)
        self._named = named
        self._of: _Counted | None = None
        self._callable: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        held = self._owner.current()
        if self._of is not held:
            self._of = held
            self._callable = getattr(held.channel, self._kind)(*self._given, **self._named)
        call = self._callable(*arguments, **named)
        held.begin(call)
        return call

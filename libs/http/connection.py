"""One HTTP connection: uvicorn's protocol over h11, with limits for slow, silent and broken peers.

* The head of a request must arrive within `HEAD_SECONDS`.
* A peer must read its response: at least `WRITE_BYTES` per `WRITE_SECONDS` while some of it waits. Otherwise the
  connection would hold it in memory as long as the peer likes.
* A refused connection stays open for a moment after its response. To close it with unread bytes would send a reset,
  which can destroy the response on its way. For the same reason, the rest of a body whose response was sent is read and
  dropped, within `HEAD_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from libs.http.asgi import SECURITY, STATE, encoded
from libs.http.errors import (
    HeadTooLarge,
    HeadTooLate,
    NotHttp,
    TooManyConnections,
    UnknownTransferEncoding,
    failure_of,
)
from libs.http.framing import StrictConnection
from libs.http.hosts import Hosts, host_at

HEAD_BYTES = 16 << 10
"""Size of a request line and headers."""
READ_BYTES = 16 << 10
"""Bytes per read. h11 needs a second for 256 KiB in chunks of one byte, and no other call runs meanwhile."""
HEAD_SECONDS = 10.0
WRITE_SECONDS = 10.0
WRITE_BYTES = 64 << 10
LINGER_SECONDS = 1.0

_log = logging.getLogger(__name__)
# Input from strangers is not worth a warning: it would fill the log.
_log.setLevel(logging.ERROR)

_NOT_HTTP = failure_of(NotHttp())
_REFUSALS = {
    refused.http_code: refused
    for refused in (
        _NOT_HTTP,
        failure_of(HeadTooLate(f"the head of a request must arrive within {HEAD_SECONDS:.0f} seconds")),
        failure_of(HeadTooLarge(f"the head of the request is larger than {HEAD_BYTES} bytes")),
        failure_of(UnknownTransferEncoding()),
        failure_of(TooManyConnections()),
    )
}
"""Refusals by HTTP code, as h11 chooses it."""

_NAME_KINDS = {"DNS": "peer_dns", "URI": "peer_uri", "email": "peer_email", "IP Address": "peer_ip"}


def names_of(certificate: Mapping[str, Any] | None) -> Mapping[str, list[bytes]]:
    """Subject alternative names of a client's certificate (`ssl.SSLSocket.getpeercert`), as gRPC's `auth_context` has
    them: all in one list, and a list for each kind."""
    found: dict[str, list[bytes]] = {}
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        found.setdefault("x509_subject_alternative_name", []).append(name.encode())
        if kind in _NAME_KINDS:
            found.setdefault(_NAME_KINDS[kind], []).append(name.encode())
    return found


def identity_of(transport: asyncio.BaseTransport) -> Mapping[str, list[bytes]]:
    """The client's certificate and its names, as gRPC's `auth_context` has them. Empty without a certificate."""
    encrypted: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    der = None if encrypted is None else encrypted.getpeercert(binary_form=True)
    if encrypted is None or der is None:
        return {}
    return {**names_of(encrypted.getpeercert()), "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(der).encode()]}


class Owner(Protocol):
    """The listener that a connection belongs to."""

    @property
    def hosts(self) -> Hosts:
        """The open connections."""

    def set_date(self) -> None:
        """Set the Date header of responses from now on."""


class HttpConnection(H11Protocol):
    def __init__(self, owner: Owner, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, state, {STATE: self}, loop)
        self.conn = StrictConnection(h11.SERVER, HEAD_BYTES)
        self.logger = _log
        self._owner = owner
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        """Size at the last check."""
        self._resumed = False
        """The peer has read nearly everything since the last check."""
        self._unread = b""
        """Received bytes that wait for the next turn of the event loop."""
        self._host = ""
        self._accepted = False
        self.peer_identity: Mapping[str, list[bytes]] = {}
        """The result of `identity_of`."""

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        with suppress(AttributeError):
            # asyncio's transports read up to 256 KiB at once. Those of libuv do too, and cannot be told to read less.
            transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        self.peer_identity = identity_of(transport)
        self._host, hosts = host_at(transport), self._owner.hosts
        if not hosts.open(self._host):
            self.abort()
        elif not hosts.accept(self._host):
            self._refuse(503)
        else:
            self._accepted = True
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._owner.hosts.close(self._host)
        if self._accepted:
            self._owner.hosts.leave(self._host)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take at most `READ_BYTES` at once: a TLS transport gives more."""
        if self._unread or len(data) > READ_BYTES:
            if not self._unread:
                self.loop.call_soon(self._take)
            self._unread += data
            self.transport.pause_reading()
        else:
            self._receive(data)

    def _take(self) -> None:
        data, self._unread = self._unread[:READ_BYTES], self._unread[READ_BYTES:]
        if self._unread:
            self.loop.call_soon(self._take)
        elif not self.flow.read_paused:
            self.transport.resume_reading()
        if not self.transport.is_closing():
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._linger_timer is not None:
            return
        before = self.cycle
        if self._head_timer is None and (before is None or before.response_complete):
            self._await_head()
        self._owner.set_date()
        super().data_received(data)
        if self.cycle is not before:
            self._forget_head()

    def on_response_complete(self) -> None:
        self._forget_head()
        self._watch_writing()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resumed = True

    def send_400_response(self, msg: str) -> None:
        """Called by `handle_events` if h11 rejects the input."""
        error = sys.exception()
        self._refuse(error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400)

    def _refuse(self, code: int) -> None:
        """Respond without a request, and close."""
        refused = _REFUSALS.get(code, _NOT_HTTP)
        body = refused.json()
        own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = encoded(SECURITY | refused.headers() | own)
        try:
            events: list[Any] = [
                h11.Response(status_code=refused.http_code, headers=head),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # A response has begun, so the connection just ends.
            self.transport.close()
            return
        self._forget_head()
        if self.cycle is not None and not self.cycle.response_complete:
            # The request in progress has its response: its handler sees a caller that left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.abort)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(408)
        elif self.cycle is None or self.cycle.response_complete:
            self.abort()

    def _watch_writing(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._write_timer is None:
            self._unsent_bytes, self._resumed = left, False
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_writing)

    def _check_writing(self) -> None:
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        if self._resumed or left <= max(self._unsent_bytes - WRITE_BYTES, 0):
            self._watch_writing()
        else:
            self.abort()

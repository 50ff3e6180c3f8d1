"""The TLS handshake of an HTTP connection, which counts as one of the listener's from its first byte.

asyncio's own TLS servers create the protocol only after the handshake. Until then nothing would limit the number of
clients that connect and stay silent.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from typing import Protocol, cast

from libs.http.connection import HttpConnection
from libs.http.hosts import Hosts, host_at

HANDSHAKE_SECONDS = 10
SHUTDOWN_SECONDS = 1


class Owner(Protocol):
    """The listener that a connection belongs to."""

    @property
    def hosts(self) -> Hosts:
        """The open connections."""


class Handshake(asyncio.Protocol):
    """The protocol of a connection until its handshake is over."""

    def __init__(
        self, open_ones: set[Handshake], owner: Owner, connection: HttpConnection, context: ssl.SSLContext
    ) -> None:
        self._open_ones = open_ones
        self._owner = owner
        self._connection = connection
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._host = ""
        self._early = b""
        """Bytes of the client that arrived together with the end of its handshake."""

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `asyncio.Transport` with libuv, but one by its methods.
        transport = cast(asyncio.Transport, transport)
        self._host = host_at(transport)
        if not self._owner.hosts.open(self._host):
            self._owner.hosts.close(self._host)
            transport.abort()
            return
        self._open_ones.add(self)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        tls = SSLProtocol(
            loop,
            self,
            self._context,
            done,
            server_side=True,
            call_connection_made=False,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        # Not later: the next bytes are the client's. `loop.start_tls` would take over in the next turn of the loop, and
        # libuv's transports read before it, even if they are paused.
        transport.set_protocol(tls)
        tls.connection_made(transport)
        self._task = loop.create_task(self._secure(transport, tls, done))

    def data_received(self, data: bytes) -> None:
        self._early += data

    async def _secure(self, transport: asyncio.Transport, tls: SSLProtocol, done: asyncio.Future[None]) -> None:
        secured: asyncio.Transport | None = None
        try:
            await done
            secured = tls._app_transport
        except (OSError, asyncio.CancelledError):
            # A stranger's broken handshake is not worth a line in the log.
            pass
        finally:
            self._open_ones.discard(self)
            self._owner.hosts.close(self._host)
            if secured is None:
                transport.abort()
        if secured is None or secured.is_closing():
            return
        secured.set_protocol(self._connection)
        self._connection.connection_made(secured)
        if self._early:
            self._connection.data_received(self._early)

"""An HTTP listener: uvicorn's protocol over h11, in the process's own event loop, with bounds and an orderly end.

What a stranger can do to it is bounded: connections, the bytes and the time of a request's head, and idle time. Bodies
and answers are bounded by the gate that all doors of a listener share (`libs.rpc.gate`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from libs.http.asgi import STATE
from libs.rpc.server import CannotListen

CONNECTIONS = 1024
HEAD_BYTES = 16 << 10
"""Of a request's line and headers."""
HEAD_SECONDS = 10.0
"""In which they must come."""
IDLE_SECONDS = 75.0
"""How long a connection without a request is kept."""
BACKLOG = 512
_LOOK_SECONDS = 0.02
_QUIET_SECONDS = 0.5
"""A draining listener without a request for so long expects none any more."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`setting`: the name of the setting that holds the address."""

    address: str
    setting: str
    connections: int = CONNECTIONS


class HttpListener:
    """Serves after `start`, and ends by `drain`."""

    def __init__(self, config: HttpConfig, app: ASGIApp) -> None:
        self._config = config
        self._app = app
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self.draining = False
        self.serving = False
        self.requests = 0
        """Since the start."""
        self._under_way = 0

    def __repr__(self) -> str:
        return f"<HttpListener {self.address} connections={len(self._state.connections)}>"

    @property
    def address(self) -> str:
        """Where it listens, with the port that was given to it when the setting's is 0."""
        host, _, _ = self._config.address.rpartition(":")
        if self._server is None or not self._server.sockets:
            return self._config.address
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def set_serving(self, serving: bool) -> None:
        """What /readyz says."""
        self.serving = serving

    async def start(self) -> None:
        """Listen. Raises CannotListen."""
        host, _, port = self._config.address.rpartition(":")
        options = Config(
            self._serve,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(IDLE_SECONDS),
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        options.load()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self, options, self._state, loop),
                host.strip("[]") or None,
                int(port),
                backlog=BACKLOG,
                family=socket.AF_INET6 if host.startswith("[") else socket.AF_UNSPEC,
            )
        except OSError as error:
            raise CannotListen(
                f"{self._config.setting}: cannot listen on {self._config.address}: {error.strerror}; stop who has it or"
                " set another address"
            ) from None

    @property
    def full(self) -> bool:
        return len(self._state.connections) > self._config.connections

    def tell_date(self) -> None:
        """Of the answers from now on."""
        date = formatdate(int(time.time()), usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]

    async def drain(self, timeout_seconds: float) -> int:
        """Answer what is under way and what still arrives, the connection closed behind each answer; then close all.
        Returns how many requests were cut off."""
        self.draining, self.serving = True, False
        if self._server is None:
            return 0
        loop = asyncio.get_running_loop()
        end, seen, quiet_since = loop.time() + timeout_seconds, self.requests, loop.time()
        self._server.close()
        while self._state.connections and loop.time() < end:
            if self._under_way or self.requests != seen:
                seen, quiet_since = self.requests, loop.time()
            elif loop.time() - quiet_since >= _QUIET_SECONDS:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        left = self._under_way
        for connection in list(self._state.connections):
            connection.transport.abort()
        while self._state.connections or self._state.tasks:
            for task in list(self._state.tasks):
                task.cancel()
            await asyncio.sleep(0)
        return left

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a close behind each answer while this drains."""
        self.requests += 1
        self._under_way += 1
        try:
            await self._app(scope, receive, self._closing(send) if self.draining else send)
        finally:
            self._under_way -= 1

    @staticmethod
    def _closing(send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return closing


class _Connection(H11Protocol):
    """One connection, with a time for each request's head."""

    def __init__(
        self, listener: HttpListener, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, state, {STATE: self}, loop)
        self._listener = listener
        self._head_timer: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._listener.full:
            self._refuse(503, "UNAVAILABLE", "too many connections: try again a little later")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._head_timer is None and (before is None or before.response_complete):
            self._await_head()
        self._listener.tell_date()
        super().data_received(data)
        if self.cycle is not before:
            self._forget_head()

    def on_response_complete(self) -> None:
        self._forget_head()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What h11 refuses: it is no HTTP."""
        self._refuse(400, "INVALID_ARGUMENT", msg)

    def _refuse(self, code: int, status: str, message: str) -> None:
        error = {"error": {"code": code, "status": status, "message": message, "details": []}}
        body = json.dumps(error).encode()
        head: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        try:
            events: list[Any] = [h11.Response(status_code=code, headers=head), h11.Data(data=body), h11.EndOfMessage()]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # An answer has begun: the connection just ends.
            pass
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

"""An HTTP listener in the process's event loop, with limits and a graceful drain.

The listener limits connections, in total and by host, and idle time. Each connection limits bytes and time of a
request's head and of its response (`libs.http.connection`). The gate that all doors of a listener share limits bodies
and calls (`libs.rpc.gate`).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from libs.http.connection import HttpConnection
from libs.http.handshake import Handshake
from libs.http.hosts import Hosts
from libs.rpc.errors import log_defect
from libs.rpc.limits import open_files
from libs.rpc.server import CannotListen
from libs.tls.context import LiveContext
from libs.tls.files import TlsFiles

CONNECTIONS = 1024
FILES_SHARE = 4
"""Share of the process's open files for connections: one part in so many. Refused connections take as many again, and
up to three backlogs are open while they are accepted. The rest of the process needs files too."""
IDLE_SECONDS = 75.0
"""Lifetime of a connection without requests."""
BACKLOG = 128
_LOOK_SECONDS = 0.02
_CUT_SECONDS = 1.0
"""Time for a cancelled request to end."""
_QUIET_SECONDS = 0.5
"""Time without requests after which a draining listener expects no more."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`setting`: name of the setting that holds the address."""

    address: str
    setting: str
    connections: int = field(default_factory=lambda: most_connections())
    tls: TlsFiles | None = None
    """None: without TLS."""
    host_share: float = 1.0
    """Share of the connections that one host may have."""
    share_port: bool = False
    """Other processes may listen on the same address."""

    @property
    def backlog(self) -> int:
        """Number of connections that the event loop accepts at once."""
        return max(min(BACKLOG, self.connections // 2), 1)


def most_connections() -> int:
    """Number of connections that the process's limit of open files allows."""
    return min(CONNECTIONS, open_files() // FILES_SHARE)


class HttpListener:
    """Serves from `start` to `drain`."""

    def __init__(self, config: HttpConfig, app: ASGIApp, loops: Sequence[Callable[[], Awaitable[None]]] = ()) -> None:
        """`loops`: background work of the application, from the start until the last response."""
        self._config = config
        self._app = app
        self._loops = loops
        self._running: list[asyncio.Task[None]] = []
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._handshakes: set[Handshake] = set()
        self.hosts = Hosts(config.connections, config.host_share)
        self.draining = False
        self.serving = False
        self.requests = 0
        """Requests since the start."""
        self._under_way = 0

    def __repr__(self) -> str:
        return f"<HttpListener {self.address} connections={len(self._state.connections)}>"

    @property
    def address(self) -> str:
        """Address with the port that the system assigned if the setting's is 0."""
        host, _, _ = self._config.address.rpartition(":")
        if self._server is None or not self._server.sockets:
            return self._config.address
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def set_serving(self, serving: bool) -> None:
        """Set the answer of /readyz."""
        self.serving = serving

    async def start(self) -> None:
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
        )
        options.load()
        loop = asyncio.get_running_loop()
        tls = self._config.tls
        context = LiveContext(tls, server=True) if tls is not None else None

        def accept() -> asyncio.Protocol:
            connection = HttpConnection(self, options, self._state, loop)
            return connection if context is None else Handshake(self._handshakes, self, connection, context)

        try:
            self._server = await loop.create_server(
                accept,
                host.strip("[]") or None,
                int(port),
                backlog=self._config.backlog,
                reuse_port=self._config.share_port,
                family=socket.AF_INET6 if host.startswith("[") else socket.AF_UNSPEC,
            )
        except OSError as error:
            raise CannotListen(
                f"{self._config.setting}: cannot listen on {self._config.address}: {error.strerror}; stop the process"
                " that uses it or set another address"
            ) from None
        self._running = [loop.create_task(_run(one)) for one in self._loops]

    @property
    def _sending(self) -> bool:
        """Whether part of a response waits for its peer. Connections limit how long."""
        return any(one.transport.get_write_buffer_size() for one in self._state.connections)

    def set_date(self) -> None:
        """Set the Date header of responses from now on."""
        date = formatdate(int(time.time()), usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]

    async def drain(self, timeout_seconds: float) -> int:
        """Finish current requests and those that still arrive, closing each connection after its response; then close
        all. Returns the number of requests that were cut off."""
        self.draining, self.serving = True, False
        if self._server is None:
            return 0
        loop = asyncio.get_running_loop()
        end, seen, quiet_since = loop.time() + timeout_seconds, self.requests, loop.time()
        self._server.close()
        for handshake in list(self._handshakes):
            handshake.abort()
        while self._state.connections and loop.time() < end:
            if self._under_way or self.requests != seen or self._sending:
                seen, quiet_since = self.requests, loop.time()
            elif loop.time() - quiet_since >= _QUIET_SECONDS:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        left = self._under_way
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CUT_SECONDS)
        for loop_task in self._running:
            loop_task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        return left

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. While draining, each response closes its connection."""
        self.requests += 1
        self._under_way += 1
        try:
            await self._app(scope, receive, self._closing(send))
        except asyncio.CancelledError:
            # The drain cancelled the request and closes its connection. uvicorn would log it as a defect.
            if not self.draining:
                raise
        finally:
            self._under_way -= 1

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if self.draining and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return closing


async def _run(one: Callable[[], Awaitable[None]]) -> None:
    """Contain the failure of one loop: its own requests fail, the others go on."""
    try:
        await one()
    except Exception as error:  # noqa: BLE001
        log_defect(error)

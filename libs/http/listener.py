"""An HTTP listener in the process's own event loop, with a bound of connections and an orderly end.

What a stranger can do to it is bounded: connections and idle time here, the bytes and the time of a request's head and
of its answer by each connection (`libs.http.connection`), bodies and calls by the gate that all doors of a listener
share (`libs.rpc.gate`).
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from libs.http.connection import HEAD_BYTES, HttpConnection
from libs.rpc.errors import log_defect
from libs.rpc.server import CannotListen

CONNECTIONS = 1024
FILES_SHARE = 4
"""Of the files that the process may open, the connections are one part in so many. Those that are refused are as many
again, and while they are accepted up to three backlogs more are open: the rest of the process needs files too."""
IDLE_SECONDS = 75.0
"""How long a connection without a request is kept."""
BACKLOG = 128
_LOOK_SECONDS = 0.02
_CUT_SECONDS = 1.0
"""How long a request that is cut off may take to end."""
_QUIET_SECONDS = 0.5
"""A draining listener without a request for so long expects none any more."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`setting`: the name of the setting that holds the address."""

    address: str
    setting: str
    connections: int = field(default_factory=lambda: most_connections())

    @property
    def backlog(self) -> int:
        """The event loop accepts so many at once."""
        return max(min(BACKLOG, self.connections // 2), 1)


def most_connections() -> int:
    """As many as the process's limit of open files bears (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else min(CONNECTIONS, soft // FILES_SHARE)


class HttpListener:
    """Serves after `start`, and ends by `drain`."""

    def __init__(self, config: HttpConfig, app: ASGIApp, loops: Sequence[Callable[[], Awaitable[None]]] = ()) -> None:
        """`loops`: what the application needs to run from the start until the last request is answered."""
        self._config = config
        self._app = app
        self._loops = loops
        self._running: list[asyncio.Task[None]] = []
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
                lambda: HttpConnection(self, options, self._state, loop),
                host.strip("[]") or None,
                int(port),
                backlog=self._config.backlog,
                family=socket.AF_INET6 if host.startswith("[") else socket.AF_UNSPEC,
            )
        except OSError as error:
            raise CannotListen(
                f"{self._config.setting}: cannot listen on {self._config.address}: {error.strerror}; stop who has it or"
                " set another address"
            ) from None
        self._running = [loop.create_task(_run(one)) for one in self._loops]

    @property
    def full(self) -> bool:
        return len(self._state.connections) > self._config.connections

    @property
    def flooded(self) -> bool:
        """Those that are refused stay for a moment, and there are as many as may be."""
        return len(self._state.connections) > 2 * self._config.connections

    @property
    def _sending(self) -> bool:
        """A part of an answer waits for its peer to take it. Connections bound how long."""
        return any(one.transport.get_write_buffer_size() for one in self._state.connections)

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
        """The application, with a close behind each answer while this drains."""
        self.requests += 1
        self._under_way += 1
        try:
            await self._app(scope, receive, self._closing(send))
        except asyncio.CancelledError:
            # The drain has cut it off, and its connection. uvicorn would log it as a defect.
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
    """A loop that fails takes its own requests with it, not the others."""
    try:
        await one()
    except Exception as error:  # noqa: BLE001
        log_defect(error)

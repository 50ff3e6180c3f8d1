"""Choice of the door by path: health, documentation, MCP, Connect, and REST for all other paths."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.http.asgi import respond
from libs.http.errors import failure_of
from libs.http.rest import RestDoor
from libs.rpc.errors import Internal, log_defect

HEALTHY, READY = "/healthz", "/readyz"
OTHER = "other"
"""Route of unrecognised requests. Not the path: any stranger could create unlimited metrics with it."""

Measure = Callable[[str, str, int, float], None]
"""Records one request: HTTP method, route, code, seconds."""


@dataclass(slots=True)
class Doors:
    """An ASGI application."""

    rest: RestDoor
    ready: Callable[[], bool]
    measure: Measure | None = None
    paths: Mapping[str, ASGIApp] = field(default_factory=dict)
    """The other doors by path. A path that ends with "/" includes all paths below it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        code = 0

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._door(scope["path"])(scope, receive, noting)
        # The outermost handler of a request: the log gets the stack trace, the client a status.
        except Exception as error:
            log_defect(error)
            if code:
                raise
            await respond(noting, 500, {"connection": "close"}, failure_of(Internal()).json(), "application/json")
        finally:
            if self.measure is not None:
                self.measure(scope["method"], scope.get("route", OTHER), code, time.perf_counter() - began)

    def _door(self, path: str) -> ASGIApp:
        if path in (HEALTHY, READY):
            return self._health
        if path in self.paths:
            return self.paths[path]
        first = path[: path.find("/", 1) + 1]
        return self.paths.get(first, self.rest)

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/healthz: the process runs. /readyz: it serves."""
        scope["route"] = scope["path"]
        serves = scope["path"] == HEALTHY or self.ready()
        body = json.dumps({"status": "SERVING" if serves else "NOT_SERVING"}).encode()
        await respond(
            send,
            200 if serves else 503,
            {"cache-control": "no-store"},
            body,
            "application/json",
            body=scope["method"] != "HEAD",
        )

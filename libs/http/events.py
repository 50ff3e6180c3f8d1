"""A watch over HTTP: `text/event-stream`, or one JSON object a line (`application/x-ndjson`) for who accepts only that.

An event's `id` is the resume token, which a browser gives back as `Last-Event-ID` when it connects again. A stream ends
with an event `error`, or a line {"error": ...}, when it does not end in order; before the first answer an error is a
response of its own. Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import Receive, Send

from libs.contract.descriptors import Method
from libs.http.asgi import Connection, answer_headers, begin, respond
from libs.http.call import DoorCall, Ended
from libs.http.errors import Failure
from libs.http.gateway import Gateway, failure

EVENTS, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"
FAREWELL_SECONDS = 1.0
"""How long the last event of a stream may take to be sent."""
RETRY_MILLISECONDS = 1000
"""After which a browser connects again."""


class EventStream:
    """One response. `show`: one serialized answer as JSON, and its resume token."""

    def __init__(
        self,
        headers: Headers,
        show: Callable[[bytes], tuple[bytes, str]],
        method: Method,
        send: Send,
        connection: Connection | None,
    ) -> None:
        accepted = headers.get("accept", "")
        self._lines = LINES in accepted and EVENTS not in accepted
        self._show = show
        self._method = method
        self._send = send
        self._connection = connection
        self._begun = False

    async def run(self, gateway: Gateway, call: DoorCall, receive: Receive) -> None:
        """To its end, or until the caller leaves."""
        stream = asyncio.ensure_future(gateway.stream(self._method, call))
        leaving = asyncio.ensure_future(_left(call, receive))
        try:
            await asyncio.wait((stream, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not stream.done():
                call.left = True
                return
            await stream
            await self._finish(call, None)
        except Ended as ended:
            await self._finish(call, failure(ended))
        finally:
            for task in (stream, leaving):
                task.cancel()
            await asyncio.gather(stream, leaving, return_exceptions=True)

    def writer(self, call: DoorCall) -> Callable[[bytes], Awaitable[None]]:
        """Sends one answer; a caller that takes none is waited for by the gate, within its bound."""

        async def write(answer: bytes) -> None:
            await self._begin(call)
            text, token = self._show(answer)
            data = text + b"\n" if self._lines else b"id: %b\ndata: %b\n\n" % (token.encode(), text)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

        return write

    async def _begin(self, call: DoorCall) -> None:
        if not self._begun:
            self._begun = True
            await begin(self._send, 200, answer_headers(call) | {"content-type": LINES if self._lines else EVENTS})
            if not self._lines:
                retry = f"retry: {RETRY_MILLISECONDS}\n\n".encode()
                await self._send({"type": "http.response.body", "body": retry, "more_body": True})

    async def _finish(self, call: DoorCall, failed: Failure | None) -> None:
        if failed is not None and not self._begun:
            headers = answer_headers(call) | ({"retry-after": failed.retry_after} if failed.retry_after else {})
            await respond(self._send, failed.http_code, headers, failed.json(), JSON)
            return
        await self._begin(call)
        last = b""
        if failed is not None:
            last = failed.json() + b"\n" if self._lines else b"event: error\ndata: %b\n\n" % failed.json()
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._send({"type": "http.response.body", "body": last})
        except TimeoutError:
            # A caller that takes nothing would keep what was written in memory for as long as it likes.
            if self._connection is not None:
                self._connection.abort()


async def _left(call: DoorCall, receive: Receive) -> None:
    """Returns when the caller has gone."""
    await call.was_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass

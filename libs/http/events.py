"""Watches over REST: `text/event-stream`, or one JSON object per line for callers that accept only
`application/x-ndjson`.

The `id` of an event is the resume token, which a browser sends as `Last-Event-ID` when it reconnects. A stream that
fails ends with an event `error`, or with a line {"error": ...}. Before the first message, an error is an ordinary
response. Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Send

from libs.http.asgi import answer_headers, respond
from libs.http.call import DoorCall
from libs.http.errors import Failure
from libs.http.streams import StreamForm

EVENTS, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"
RETRY_MILLISECONDS = 1000
"""Delay after which a browser reconnects."""

Show = Callable[[bytes], tuple[bytes, str]]
"""Converts one serialized message to JSON and its resume token."""


def form_for(headers: Headers, show: Show) -> StreamForm:
    """The form that the caller accepts."""
    accepted = headers.get("accept", "")
    return Lines(show) if LINES in accepted and EVENTS not in accepted else Events(show)


class Lines:
    """One JSON object per line."""

    kind = LINES

    def __init__(self, show: Show) -> None:
        self._show = show

    def headers(self, call: DoorCall) -> dict[str, str]:
        return answer_headers(call) | {"content-type": self.kind}

    def answer(self, data: bytes) -> bytes:
        text, _ = self._show(data)
        return text + b"\n"

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        return failed.json() + b"\n" if failed is not None else b""

    async def refuse(self, call: DoorCall, failed: Failure, send: Send) -> bool:
        await respond(send, failed.http_code, answer_headers(call) | failed.headers(), failed.json(), JSON)
        return True


class Events(Lines):
    """Server-sent events."""

    kind = EVENTS

    def __init__(self, show: Show) -> None:
        super().__init__(show)
        self._retry = f"retry: {RETRY_MILLISECONDS}\n\n".encode()

    def answer(self, data: bytes) -> bytes:
        text, token = self._show(data)
        retry, self._retry = self._retry, b""
        return b"%bid: %b\ndata: %b\n\n" % (retry, token.encode(), text)

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        return b"event: error\ndata: %b\n\n" % failed.json() if failed is not None else b""

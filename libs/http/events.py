"""A watch over REST: `text/event-stream`, or one JSON object a line (`application/x-ndjson`) for who accepts only that.

An event's `id` is the resume token, which a browser gives back as `Last-Event-ID` when it connects again. A stream ends
with an event `error`, or a line {"error": ...}, when it does not end in order; before the first answer an error is a
response of its own. Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
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
"""After which a browser connects again."""

Show = Callable[[bytes], tuple[bytes, str]]
"""One serialized answer as JSON, and its resume token."""


def form_for(headers: Headers, show: Show) -> StreamForm:
    """The form that the caller accepts."""
    accepted = headers.get("accept", "")
    return Lines(show) if LINES in accepted and EVENTS not in accepted else Events(show)


class Lines:
    """One JSON object a line."""

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

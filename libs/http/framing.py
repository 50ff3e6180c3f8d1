"""h11's server side of a connection, without the tolerance for requests that two programs can read differently.

Behind a proxy, a request that the proxy reads differently hides a second one from it (request smuggling). h11 follows
the specification, which allows a server to accept some of these. No client needs them, so they are refused:

* Transfer-Encoding beside Content-Length, or in HTTP/1.0: https://www.rfc-editor.org/rfc/rfc9112#section-6.1.
* Lines of the head that end with a bare LF, and fields that continue on the next line.
* Control characters in the head: some programs end a line or a name there.
"""

from __future__ import annotations

import re
from typing import Any

import h11

_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Ambiguous bytes in a head. h11 itself refuses a CR without a LF."""


class StrictConnection(h11.Connection):
    """h11's connection, but `next_event` raises RemoteProtocolError for an ambiguous head."""

    def next_event(self) -> Any:
        if self.their_state is not h11.IDLE:
            return super().next_event()
        received = self.trailing_data[0]
        event = super().next_event()
        if isinstance(event, h11.Request):
            head = received[: len(received) - len(self.trailing_data[0])]
            if _AMBIGUOUS.search(head) or _has_two_lengths(event):
                raise h11.RemoteProtocolError("ambiguous request", error_status_hint=400)
        return event


def _has_two_lengths(request: h11.Request) -> bool:
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1")

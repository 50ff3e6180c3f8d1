"""W3C trace context: the identity of a call's trace, as it travels in metadata, outbox rows and headers of events.

Source: https://www.w3.org/TR/trace-context/#traceparent-header. A value that is not valid is ignored: it is no reason
to refuse a call. The context changes no answer, no row and no event but for its own column and header.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import NamedTuple

HEADER = "traceparent"

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LENGTH = 55
_NO_VERSION = "ff"
_SAMPLED = 1


class TraceParent(NamedTuple):
    trace_id: str
    span_id: str
    sampled: bool
    """The caller records the trace."""


current: ContextVar[str] = ContextVar("current_traceparent", default="")
"""Value of the header for calls, rows and log lines of the running call; "" outside a traced call."""


def parse(value: str) -> TraceParent | None:
    """None if the value is not valid."""
    found = _FORM.fullmatch(value) if len(value) == _LENGTH else None
    if found is None or found[1] == _NO_VERSION or not int(found[2], 16) or not int(found[3], 16):
        return None
    return TraceParent(found[2], found[3], bool(int(found[4], 16) & _SAMPLED))


def checked(value: object) -> str:
    """The value if it is valid, else ""."""
    return value if isinstance(value, str) and parse(value) is not None else ""


def trace_id() -> str:
    """Trace of the running call; "" outside a traced call."""
    return trace_id_of(current.get())


def trace_id_of(value: str) -> str:
    """The trace id of a valid value; "" of ""."""
    return value[3:35]

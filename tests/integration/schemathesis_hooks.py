"""What schemathesis must know of this interface beyond its document; loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

DEADLINE = "X-Server-Timeout"
STREAM_SECONDS = "0.3"
OF_HTTP = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
"""Headers that HTTP itself describes."""
_EVENTS = "text/event-stream"
_TINY = re.compile(r"0\.\d+|[0-4](\.\d+)?|\d+(\.\d+)?e-\d+")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Headers that are not in the document come with every request on the way here: they are not refused."""
    return not any(name.lower().startswith("x-schemathesis") for name in case.headers or {})


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A stream ends by its deadline only. A deadline that has passed is no fault of the server."""
    ok = case.operation.definition.raw["responses"]["200"]
    given = str((case.headers or {}).get(DEADLINE, ""))
    if _EVENTS in ok.get("content", {}):
        case.headers[DEADLINE] = STREAM_SECONDS
    elif _TINY.fullmatch(given):
        case.headers[DEADLINE] = "5"


@schemathesis.check
def headers_are_documented(context: Any, response: Any, case: Any) -> None:
    """Schemathesis itself holds only those headers to the document that the document has."""
    described = case.operation.responses.find_by_status_code(response.status_code)
    if described is not None:
        unknown = set(response.headers) - OF_HTTP - {name.lower() for name in described.headers}
        assert not unknown, f"the document lacks these headers of a {response.status_code}: {sorted(unknown)}"

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
DEADLINE_SECONDS = 25.0
"""Of every other call: within what a listener gives, and enough for a busy machine. A store that does not answer before
the deadline is answered with 504, and by the router with 503 a moment earlier: both are right, and neither says that
anything is wrong with an answer."""
_WAIT = re.compile(r"\bwait=[0-9.]+")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Headers that are not in the document come with every request on the way here: they are not refused."""
    return not any(name.lower().startswith("x-schemathesis") for name in case.headers or {})


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A stream ends by its deadline only. All else has a deadline that does not pass on a busy machine."""
    ok, headers = case.operation.definition.raw["responses"]["200"], case.headers
    if _EVENTS in ok.get("content", {}):
        headers[DEADLINE] = STREAM_SECONDS
    elif DEADLINE not in headers and _WAIT.search(str(headers.get("Prefer", ""))):
        headers["Prefer"] = f"wait={DEADLINE_SECONDS}"
    elif 0 < _seconds(str(headers.get(DEADLINE, "1"))) < DEADLINE_SECONDS:
        headers[DEADLINE] = str(DEADLINE_SECONDS)


def _seconds(text: str) -> float:
    """0 if it is no number, which the server refuses."""
    try:
        return float(text)
    except ValueError:
        return 0.0


@schemathesis.check
def headers_are_documented(context: Any, response: Any, case: Any) -> None:
    """Schemathesis itself holds only those headers to the document that the document has."""
    described = case.operation.responses.find_by_status_code(response.status_code)
    if described is not None:
        unknown = set(response.headers) - OF_HTTP - {name.lower() for name, _ in described.headers.items()}
        assert not unknown, f"the document lacks these headers of a {response.status_code}: {sorted(unknown)}"

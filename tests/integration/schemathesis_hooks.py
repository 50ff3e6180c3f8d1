"""Facts about this interface that schemathesis needs beyond its document; loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis

DEADLINE = "X-Server-Timeout"
STREAM_SECONDS = "0.3"
OF_HTTP = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
"""Headers that HTTP itself describes."""
_EVENTS = "text/event-stream"
SHORT_SECONDS = 5.0
"""A caller's shorter deadline may pass before the server can answer."""
MOST_UNAVAILABLE = 10
"""Answers with 503 in one run. An operation that is never available has more."""
_unavailable = 0


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Headers that are not in the document come with every request on the way here: they are not refused."""
    return not any(name.lower().startswith("x-schemathesis") for name in case.headers or {})


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A stream ends by its deadline only."""
    ok, headers = case.operation.definition.raw["responses"]["200"], case.headers
    if _EVENTS in ok.get("content", {}):
        headers[DEADLINE] = STREAM_SECONDS
    elif 0 < _seconds(str(headers.get(DEADLINE, ""))) < SHORT_SECONDS:
        headers[DEADLINE] = str(SHORT_SECONDS)


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


@schemathesis.check
def is_unavailable_rarely(context: Any, response: Any, case: Any) -> None:
    """A store that stands still on a busy machine for a second breaks the router's connection. If the router sends the
    write again and it is refused, the first attempt may still be under way, and the caller has to ask once more."""
    global _unavailable
    if response.status_code == 503:
        _unavailable += 1
        assert "retry-after" in response.headers, "a 503 has no Retry-After"
        assert _unavailable <= MOST_UNAVAILABLE, f"more than {MOST_UNAVAILABLE} answers with 503"

"""Log records as lines on stderr: text for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from libs.telemetry import trace_context
from libs.text import hide_password, visible

_LEVELS = ("debug", "info", "warning", "error")


class TextLines(logging.Formatter):
    """`time level logger message` in one line, with `trace_id=...` in a traced call, followed by the lines of any
    stack trace."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        # A caller's text must not begin a line of its own or steer the operator's terminal.
        record.message = visible(record.message, keep="")
        line = super().formatMessage(record)
        trace_id = trace_context.trace_id()
        return f"{line} trace_id={trace_id}" if trace_id else line

    def format(self, record: logging.LogRecord) -> str:
        # A driver's words may quote the address that it was given.
        return hide_password(super().format(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _time(record)


class JsonLines(logging.Formatter):
    """An object with time, level, logger and message; `trace_id` in a traced call; `trace`: any stack trace."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide_password(record.getMessage()),
        }
        if trace_id := trace_context.trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["trace"] = hide_password(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, *, as_json: bool) -> None:
    """Write records of `level` ("debug", "info", "warning", "error") and above to stderr."""
    if level not in _LEVELS:
        raise ValueError(f"level is {level!r}; it must be one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # While a broker is unavailable, the client logs it many times a second; the waiting loop logs it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    for client in ("httpx2", "httpcore2"):
        # They log each request with its address, and the address of a webhook may be a secret.
        logging.getLogger(client).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Message headers of events: CloudEvents 1.0, Kafka protocol binding, binary content mode.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md, section 3.2. The
value of the message is the serialized record. Each attribute is a header `ce_<name>` in UTF-8, except the media type of
the data, which is `content-type`. `traceparent` is the header of W3C Trace Context.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from libs.eventlog.port import EventLogError
from libs.telemetry import trace_context

CONTENT_TYPE: Final = "application/protobuf"
SOURCE_PREFIX: Final = "/baton/"

_SPEC_VERSION: Final = ("ce_specversion", b"1.0")
_CONTENT_TYPE: Final = ("content-type", CONTENT_TYPE.encode())
_MAX_DIGITS: Final = 19
"""Digits of the largest term and revision, which are 64-bit integers."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REQUIRED: Final = ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type")

Headers = tuple[tuple[str, bytes], ...]


class HeadersInvalid(EventLogError):
    """The headers of a message are not those of an event of Baton"""

    reason = "LOG_HEADERS_INVALID"


@dataclass(frozen=True, slots=True)
class Attributes:
    """The content of an event's headers. `time`: UNIX seconds, to the microsecond. `store`: the store that made the
    event."""

    key: str
    term: int
    revision: int
    store: str
    type: str
    time: float
    traceparent: str | None = None


class HeaderWriter:
    """Writes the headers of one store's events; constant headers are encoded once."""

    def __init__(self, store: str, type: str) -> None:  # noqa: A002 - the attribute's name in the specification
        self._before = (_SPEC_VERSION, ("ce_source", f"{SOURCE_PREFIX}{store}".encode()), ("ce_type", type.encode()))

    def write(self, key: str, version: tuple[int, int], time: float, traceparent: str | None = None) -> Headers:
        """Headers of the event that gave record `key` its `version` at `time`, in UNIX seconds."""
        subject = key.encode()
        headers = (
            *self._before,
            ("ce_id", b"%b/%d.%d" % (subject, *version)),
            ("ce_subject", subject),
            ("ce_time", _rfc3339(time)),
            _CONTENT_TYPE,
        )
        return headers if traceparent is None else (*headers, (trace_context.HEADER, traceparent.encode()))


def read_headers(headers: Iterable[tuple[str, bytes]]) -> Attributes:
    """Parse headers. Names are case-insensitive; unknown ones are ignored.

    Raises:
        HeadersInvalid: a header is missing, malformed, or contradicts another; the message names it.
    """
    try:
        found = {name.lower(): value.decode() for name, value in headers}
    except UnicodeDecodeError as error:
        raise HeadersInvalid(f"a value is not UTF-8: {error}") from error
    for name in _REQUIRED:
        if name not in found:
            raise HeadersInvalid(f"{name} is missing")
    for name, wanted in (("ce_specversion", "1.0"), ("content-type", CONTENT_TYPE)):
        if found[name] != wanted:
            raise HeadersInvalid(f"{name} is {found[name]!r}, it must be {wanted!r}")
    key = found["ce_subject"]
    term, revision = _read_id(found["ce_id"], key)
    source = found["ce_source"]
    if not source.startswith(SOURCE_PREFIX) or source == SOURCE_PREFIX:
        raise HeadersInvalid(f"ce_source is {source!r}, it must be {SOURCE_PREFIX}<store>")
    store = source.removeprefix(SOURCE_PREFIX)
    return Attributes(
        key, term, revision, store, found["ce_type"], _read_time(found["ce_time"]), found.get("traceparent")
    )


def traceparent_of(headers: Iterable[tuple[str, bytes]]) -> str:
    """The trace context of an event; "" if it has no valid one."""
    found = next((value for name, value in headers if name.lower() == trace_context.HEADER), b"")
    return trace_context.checked(found.decode("ascii", "replace"))


def _read_id(value: str, key: str) -> tuple[int, int]:
    subject, _, version = value.rpartition("/")
    term, _, revision = version.partition(".")
    numbers = (term, revision)
    if subject != key or not all(part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS for part in numbers):
        raise HeadersInvalid(f"ce_id is {value!r}, it must be {key}/<term>.<revision>")
    return int(term), int(revision)


def _rfc3339(time: float) -> bytes:
    moment = _EPOCH + timedelta(microseconds=round(time * 1_000_000))
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z".encode()


def _read_time(value: str) -> float:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise HeadersInvalid(f"ce_time is {value!r}, it must be a time of RFC 3339") from error
    if moment.tzinfo is None:
        raise HeadersInvalid(f"ce_time is {value!r}, it must have an offset from UTC")
    return (moment - _EPOCH) / timedelta(seconds=1)

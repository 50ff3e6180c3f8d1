"""Conversion of Baton's errors to gRPC statuses and back.

Every error carries a `google.rpc.Status` in its trailers: an `ErrorInfo` (domain `baton`), and where they apply a
`BadRequest`, a `PreconditionFailure` and a `RetryInfo`. Source: https://google.aip.dev/193.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Never, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from libs.errors import DOMAIN, BatonError, Overloaded, OwnerUnavailable
from libs.rpc import metadata
from libs.rpc.auth import TokenRefused
from libs.telemetry import trace_context

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

Pairs: TypeAlias = "Sequence[tuple[str, str | bytes]]"
"""Metadata."""

DETAILS_KEY = "grpc-status-details-bin"

_TYPE_PREFIX = "type.googleapis.com/"
_ERROR_INFO_URL = _TYPE_PREFIX + error_details_pb2.ErrorInfo.DESCRIPTOR.full_name

# Trailers stay far below the 8 KiB that a peer accepts. They hold the message three times (once percent-encoded, twice
# in the details, which travel in base64), and each metadata value once.
_MESSAGE_BYTES = 600
_VALUE_BYTES = 200
_VALUES = 8

_CODES = {code.name: code for code in grpc.StatusCode}


class DeadlineExceeded(BatonError):
    """The call exceeded its deadline. A write may have had its effect: retry with its request_id."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Internal(BatonError):
    """The server failed; its log has the details."""


def cut(text: str, limit_bytes: int) -> str:
    """The text, shortened to the limit with "..." at its end."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: limit_bytes - 3].decode(errors="ignore") + "..."


def status_of(error: BatonError) -> status_pb2.Status:
    """The error as a `google.rpc.Status`, small enough for trailers."""
    message = cut(error.message, _MESSAGE_BYTES)
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    metadata = {name: cut(value, _VALUE_BYTES) for name, value in list(error.metadata.items())[:_VALUES]}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    # Else the order of the metadata, and so the bytes, would differ between equal errors.
    status.details.add().Pack(info, deterministic=True)
    field = metadata.get("field")
    if field is not None and error.code == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.code == "FAILED_PRECONDITION":
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, subject=metadata.get("name", ""), description=message)
        status.details.add().Pack(failure)
    if error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_seconds * 1000))
        status.details.add().Pack(retry)
    return status


def code_of(error: BatonError) -> grpc.StatusCode:
    return _CODES[error.code]


def add_trailers(context: Context, pairs: Pairs) -> None:
    """Send these in the trailers of the running call, besides those that were set before."""
    if pairs:
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), *pairs))


async def abort(context: Context, error: BatonError) -> Never:
    """End the call with this error, and send the trailing metadata that was set before.

    The error's detail goes to the log, each line at most once in ten seconds.
    """
    if error.detail:
        _DETAILS.note(f"{error.reason}: {error}")
    status = status_of(error)
    trailers = (*(context.trailing_metadata() or ()), *trace_of(context), (DETAILS_KEY, status.SerializeToString()))
    await context.abort(code_of(error), status.message, trailers)


def log_defect(error: Exception) -> None:
    """Log a defect that ended a call, with the stack trace that the client does not get."""
    log.error("a call failed by a defect: %r", error, exc_info=error)


async def pass_on(context: Context, error: grpc.aio.AioRpcError, *, without: Collection[str] = ()) -> Never:
    """End the call as another server ended the call that was made for it: with its code, message, details and trailers,
    and with the trailing metadata that was set before.

    `without`: names of trailers that are not passed on.

    Two kinds of errors are hidden from the client: the transport's own, which name hosts and ports, and a peer's
    refusal of our token, which reveals a misconfiguration.
    """
    reason, _ = reason_of(error)
    foreign = _FOREIGN.get(error.code())
    if reason == TokenRefused.reason:
        log.error("another process of Baton refuses our token: give both the same token_file")
        await abort(context, OwnerUnavailable())
    if not reason and foreign is not None:
        await abort(context, foreign(detail=f"{error.code().name}: {error.details()}"))
    without = (*without, metadata.TRACE_ID)
    passed = (item for item in own_metadata(error.trailing_metadata()) if item[0] not in without)
    trailers = (*(context.trailing_metadata() or ()), *trace_of(context), *passed)
    await context.abort(error.code(), error.details() or "", trailers)


def trace_of(context: Context) -> Pairs:
    """The trace of a call that fails, as trailing metadata: of the running span, else of the caller; nothing if the
    call is not traced."""
    found = trace_context.current.get()
    if not found:
        given = dict(context.invocation_metadata() or ()).get(metadata.TRACEPARENT)
        found = trace_context.checked(given)
    return ((metadata.TRACE_ID, trace_context.trace_id_of(found)),) if found else ()


class _Details:
    """Logs a line at most once in `EVERY_SECONDS`: a store that is unavailable fails each call the same way."""

    EVERY_SECONDS = 10.0
    MOST = 256
    """Maximum number of remembered lines. Beyond it, all are forgotten, so a line may repeat early."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def note(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last.get(line, -self.EVERY_SECONDS) < self.EVERY_SECONDS:
            return
        if len(self._last) >= self.MOST:
            self._last.clear()
        self._last[line] = now
        log.warning("a call failed: %s", line)


_DETAILS = _Details()

_FOREIGN: Mapping[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.UNAVAILABLE: OwnerUnavailable,
    grpc.StatusCode.CANCELLED: OwnerUnavailable,
    grpc.StatusCode.UNAUTHENTICATED: OwnerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}
"""Replacements for the transport's errors, which are those without a reason."""


def own_metadata(metadata: Any) -> tuple[tuple[str, Any], ...]:
    """The part of a peer's metadata that a server may pass on: no headers of the transport."""
    return tuple(
        (name, value)
        for name, value in metadata or ()
        if name == DETAILS_KEY or not (name.startswith(("grpc-", ":")) or name in _TRANSPORT)
    )


_TRANSPORT = frozenset({"content-type", "te", "user-agent", "date", "server", "trailer"})


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, Mapping[str, str]]:
    """Reason and metadata of the error's ErrorInfo; ("", {}) for foreign errors, which have none."""
    for name, value in _items(error.trailing_metadata()):
        if name == DETAILS_KEY:
            return _read_details(value)
    return "", {}


_NOT_CONNECTED = ("failed to connect to all addresses", "connections to all backends failing")


def never_sent(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC did not send the call for lack of a connection, by the text of its error. False if the text is
    unknown."""
    return (error.details() or "").startswith(_NOT_CONNECTED)


def nothing_listens(error: grpc.aio.AioRpcError) -> bool:
    """Whether the peer's machine refused the connection. A stalled peer or a cut network refuses no connection."""
    return never_sent(error) and "Connection refused" in (error.details() or "")


def _items(metadata: Any) -> Sequence[tuple[str, Any]]:
    return metadata or ()


def _read_details(value: bytes) -> tuple[str, Mapping[str, str]]:
    try:
        for detail in status_pb2.Status.FromString(value).details:
            if detail.type_url == _ERROR_INFO_URL:
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN:
                    return info.reason, dict(info.metadata)
    except DecodeError:
        pass
    return "", {}

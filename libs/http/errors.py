"""Statuses over HTTP: the code of the response, and the body of an error.

Codes: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, "HTTP Mapping".
Body: https://google.aip.dev/193.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from libs.errors import BatonError
from libs.http.challenge import challenge_of
from libs.rpc.errors import DETAILS_KEY, code_of, status_of

HTTP_CODES: Mapping[grpc.StatusCode, int] = MappingProxyType(
    {
        grpc.StatusCode.OK: 200,
        grpc.StatusCode.CANCELLED: 499,
        grpc.StatusCode.UNKNOWN: 500,
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.ALREADY_EXISTS: 409,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.ABORTED: 409,
        grpc.StatusCode.OUT_OF_RANGE: 400,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DATA_LOSS: 500,
    }
)

_NUMBERS = {code.value[0]: code for code in grpc.StatusCode}


class RefusedByHttp(BatonError):
    """The request does not fit this interface."""

    http_code = 400


class NoSuchPath(RefusedByHttp):
    """This path does not exist."""

    code = "NOT_FOUND"
    reason = "NO_SUCH_PATH"
    http_code = 404


class NoSuchMethod(RefusedByHttp):
    """The service has no such method."""

    code = "UNIMPLEMENTED"
    reason = "NO_SUCH_METHOD"
    http_code = 404


class Compressed(BatonError):
    """The message is compressed: send it as it is; "identity" is the only encoding here."""

    code = "UNIMPLEMENTED"
    reason = "UNSUPPORTED_COMPRESSION"

    def __init__(self, name: str, encoding: str) -> None:
        """`name`: name of the header or parameter."""
        super().__init__(f"{name}: {encoding[:40]!r} is not supported: the supported encodings are: identity")


class NoSuchVerb(RefusedByHttp):
    """The path does not support this HTTP method."""

    code = "UNIMPLEMENTED"
    reason = "METHOD_NOT_ALLOWED"
    http_code = 405

    def __init__(self, verb: str, allowed: Sequence[str]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"{verb} is not allowed here: use {self.allowed}", allowed=self.allowed)


class BodyTooLarge(RefusedByHttp):
    """The body is too large."""

    code = "INVALID_ARGUMENT"
    reason = "BODY_TOO_LARGE"
    http_code = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")


class WrongMediaType(RefusedByHttp):
    """The body has an unsupported media type."""

    code = "INVALID_ARGUMENT"
    reason = "UNSUPPORTED_MEDIA_TYPE"
    http_code = 415


class NotHttp(RefusedByHttp):
    """This is no HTTP/1.1 request."""

    code = "INVALID_ARGUMENT"
    reason = "NOT_HTTP"


class HeadTooLate(RefusedByHttp):
    """The head of the request did not come in time."""

    code = "DEADLINE_EXCEEDED"
    reason = "HEAD_TOO_LATE"
    http_code = 408


class HeadTooLarge(RefusedByHttp):
    """The head of the request is too large."""

    code = "INVALID_ARGUMENT"
    reason = "HEAD_TOO_LARGE"
    http_code = 431


class UnknownTransferEncoding(RefusedByHttp):
    """This transfer encoding is not supported: use chunked, or Content-Length."""

    code = "UNIMPLEMENTED"
    reason = "UNSUPPORTED_TRANSFER_ENCODING"
    http_code = 501


class TooManyConnections(RefusedByHttp):
    """Too many connections are open: try again a little later."""

    code = "UNAVAILABLE"
    reason = "TOO_MANY_CONNECTIONS"
    http_code = 503
    retry_seconds = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that ended a call, in the form that its client gets."""

    status: status_pb2.Status
    http_code: int
    allowed: str = ""
    """Value of the Allow header of a 405: the methods that the path supports."""

    @property
    def code(self) -> grpc.StatusCode:
        return _NUMBERS.get(self.status.code, grpc.StatusCode.UNKNOWN)

    @property
    def retry_after(self) -> str:
        """Whole seconds, at least 1; "" if unknown."""
        for detail in self.status.details:
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(retry):
                return str(max(1, math.ceil(retry.retry_delay.ToTimedelta().total_seconds())))
        return ""

    def challenge(self, resource_metadata: str = "") -> str:
        """Value of WWW-Authenticate; "" unless the call is not authenticated."""
        return challenge_of(self.status, resource_metadata) if self.code is grpc.StatusCode.UNAUTHENTICATED else ""

    def headers(self) -> dict[str, str]:
        """The parts of the error that HTTP has headers for."""
        found = {"retry-after": self.retry_after, "allow": self.allowed, "www-authenticate": self.challenge()}
        return {name: value for name, value in found.items() if value}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "code": self.http_code,
                "status": self.code.name,
                "message": self.status.message,
                "details": list(self.details()),
            }
        }

    def json(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

    def details(self) -> Iterator[dict[str, Any]]:
        """The details that can be decoded, as JSON with @type."""
        for detail in self.status.details:
            try:
                yield json_format.MessageToDict(detail)
            except (TypeError, DecodeError):
                # The detail has an unknown type.
                yield {"@type": detail.type_url}


def failure_of(error: BatonError) -> Failure:
    """The failure of a call that did not reach its handler, or that one of Baton's own errors ended."""
    http_code = error.http_code if isinstance(error, RefusedByHttp) else HTTP_CODES[code_of(error)]
    return Failure(status_of(error), http_code, getattr(error, "allowed", ""))


def failure_from(
    code: grpc.StatusCode, message: str, trailers: Mapping[str, str | bytes], http_code: int | None = None
) -> Failure:
    """The failure of a call that a handler ended. Foreign errors have no details. `http_code`: None for the code's
    default."""
    details = trailers.get(DETAILS_KEY)
    status = status_pb2.Status()
    if isinstance(details, bytes):
        try:
            status.ParseFromString(details)
        except DecodeError:
            status.Clear()
    if not status.code:
        status = status_pb2.Status(code=code.value[0], message=message)
    return Failure(status, http_code or HTTP_CODES[code])

"""The error of a failed call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"
_TOO_LARGE = "larger than max"


class CallError(Exception):
    """A call that failed, after the retries that could help."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        """Text for people."""
        self.reason = reason
        """Stable identifier for programs, for example ETAG_MISMATCH. Empty if the connection failed and not the
        server."""
        self.metadata: Mapping[str, str] = metadata or {}
        """Details of the reason: the field, the name, the holder of a lease."""
        self.retry_seconds = retry_seconds
        """Delay after which a retry can help, if the server names one."""
        self.request_id = request_id
        """Request id of a write. If the call timed out, it may have had its effect: call again with this id to get its
        answer."""

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @property
    def may_pass(self) -> bool:
        """Whether the same call can succeed later."""
        if self.retry_seconds is not None or self.code is grpc.StatusCode.UNAVAILABLE:
            return self.code in RETRIED
        return self.code in RETRIED and not self.reason and _TOO_LARGE not in self.message


RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED})
"""Codes that may be retried. With ABORTED or RESOURCE_EXHAUSTED and a reason, a retry helps only if the server names a
delay: an etag that does not match will not match later."""


def call_error(error: grpc.RpcError, request_id: str = "") -> CallError:
    """Convert an error of gRPC."""
    failed: Any = error
    reason, metadata, retry_seconds = _read_details(failed.trailing_metadata())
    return CallError(
        failed.code(),
        failed.details() or "",
        reason=reason,
        metadata=metadata,
        retry_seconds=retry_seconds,
        request_id=request_id,
    )


def _read_details(trailers: Any) -> tuple[str, dict[str, str], float | None]:
    status = status_pb2.Status()
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    delay = None
    try:
        for name, value in trailers or ():
            if name == _DETAILS:
                status.ParseFromString(value)
        for detail in status.details:
            if detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
                delay = retry.retry_delay.ToTimedelta().total_seconds()
            elif not info.reason and detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
    except DecodeError:
        pass
    return info.reason, dict(info.metadata), delay

"""The base class of errors.

A subclass's docstring is its default message. An error has its gRPC code, its reason and whether a retry can help.
"""

from __future__ import annotations

from collections.abc import Mapping

DOMAIN = "baton"
"""Domain of the `google.rpc.ErrorInfo` that every error carries."""


HIDDEN = "***"
"""Shown in the place of a secret."""


class BatonError(Exception):
    """An error inside Baton."""

    code: str = "INTERNAL"
    """Name of the gRPC status code."""
    reason: str = "INTERNAL"
    """Stable identifier for programs, the same over every protocol."""
    retry_seconds: float | None = None
    """Delay after which a retry can help; None if it cannot."""

    def __init__(self, message: str | None = None, *, detail: str = "", **metadata: str) -> None:
        """`message` and `metadata` are for the caller. `detail` is for the log only: driver text, a path, a host."""
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.detail = detail
        self.metadata: Mapping[str, str] = metadata

    def __str__(self) -> str:
        """Message and detail, for logs and operators. Clients get `message`."""
        return f"{self.message} [{self.detail}]" if self.detail else self.message

    @property
    def message(self) -> str:
        return str(self.args[0])


class Hidden:
    """A value that an error must not show."""

    def __repr__(self) -> str:
        return HIDDEN


class InvalidField(BatonError):
    """A field of the request is not valid."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

    def __init__(self, field: str, value: object, expected: str) -> None:
        """`value`: the caller's value; in words, such as "12 bytes", if it is too large to show. `expected`: the valid
        form or the remedy, which ends the message. For a secret, `value` is Hidden()."""
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field}: {shown} is not valid: {expected}", field=field)
        self.field = field
        self.expected = expected


class StoreUnavailable(BatonError):
    """The store's database is out of reach. A write may have had its effect: retry with its request_id."""

    code = "UNAVAILABLE"
    reason = "OWNER_UNAVAILABLE"
    retry_seconds = 1.0


class NewerSchema(BatonError):
    """The database was made by a newer version of this program: run that version or restore an older backup."""


class StoreNotReady(BatonError):
    """The store is starting or draining."""

    code = "UNAVAILABLE"
    reason = "STORE_NOT_READY"
    retry_seconds = 0.5


class Overloaded(BatonError):
    """Too many calls are in progress; try again later."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    retry_seconds = 0.2


class OwnerUnavailable(BatonError):
    """The store that owns the record is out of reach. A write may have had its effect: retry with its request_id."""

    code = "UNAVAILABLE"
    reason = "OWNER_UNAVAILABLE"
    retry_seconds = 1.0


class NotLogged(BatonError):
    """The write did not reach the event log in time. It may have had its effect: retry with its request_id."""

    code = "UNAVAILABLE"
    reason = "NOT_LOGGED"
    retry_seconds = 1.0


class LogAway(BatonError):
    """The event log is out of reach, and this write is acknowledged only from the log: this attempt changed nothing"""

    code = "UNAVAILABLE"
    reason = "LOG_UNAVAILABLE"
    retry_seconds = 1.0


_FAULT_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN", "DATA_LOSS"})
LOG_REASONS = frozenset({NotLogged.reason, LogAway.reason})


def is_server_fault(code: str, reason: str) -> bool:
    """Whether a store failed, rather than refused. An unavailable or slow log is not a fault of the store."""
    return code in _FAULT_CODES and reason not in LOG_REASONS


class DiskFull(BatonError):
    """The store's disk is full. Nothing was changed, and reads go on. Retry when the operator has made room."""

    code = "RESOURCE_EXHAUSTED"
    reason = "DISK_FULL"
    retry_seconds = 5.0


class LockTimeout(BatonError):
    """The record is busy; nothing was changed: try again."""

    code = "ABORTED"
    reason = "LOCK_TIMEOUT"
    retry_seconds = 0.1

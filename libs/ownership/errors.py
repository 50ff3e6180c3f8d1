"""Errors of the ownership protocol."""

from __future__ import annotations

from libs.errors import BatonError
from libs.ownership.model import Found, Store, Version


class NotOwner(BatonError):
    """This store does not own the record. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_OWNER"

    def __init__(self, owner: Store, version: Version, *, absent: bool, hidden: bool = False) -> None:
        """`hidden`: there is a record, which the caller must not reach. The owner is that of its bucket."""
        super().__init__(
            f"the record belongs to store {owner}",
            owner=owner.value,
            term=str(version.term),
            revision=str(version.revision),
            absent="true" if absent else "false",
            **({"hidden": "true"} if hidden else {}),
        )
        self.owner = owner
        self.version = version
        self.absent = absent
        self.hidden = hidden

    @classmethod
    def of(cls, found: Found, *, hidden: bool = False) -> NotOwner:
        return cls(found.owner, found.version, absent=found.row is None, hidden=hidden)


class RequestIdReused(BatonError):
    """A different request on this record has used this request_id. Generate a new one."""

    code = "INVALID_ARGUMENT"
    reason = "REQUEST_ID_REUSED"


class OutboxFull(BatonError):
    """The outbox is full: the event log is unavailable or slow. Nothing was changed."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUTBOX_FULL"
    retry_seconds = 5.0


class RevisionExhausted(BatonError):
    """The record has the last revision of its term. A seizure of its bucket makes it writable again."""

    code = "FAILED_PRECONDITION"
    reason = "REVISION_EXHAUSTED"


class RecordTooLarge(BatonError):
    """The record would exceed the maximum size of an event. Nothing was changed."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

"""What the protocol refuses."""

from __future__ import annotations

from libs.errors import BatonError
from libs.ownership.model import Found, Store, Version


class NotOwner(BatonError):
    """This store does not own the record: nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_OWNER"

    def __init__(self, owner: Store, version: Version, *, absent: bool) -> None:
        super().__init__(
            f"the record belongs to store {owner}",
            owner=owner.value,
            term=str(version.term),
            revision=str(version.revision),
            absent="true" if absent else "false",
        )
        self.owner = owner
        self.version = version
        self.absent = absent

    @classmethod
    def of(cls, found: Found) -> NotOwner:
        return cls(found.owner, found.version, absent=found.row is None)


class RequestIdReused(BatonError):
    """This request_id was used before, by another request on this record: make a new one."""

    code = "INVALID_ARGUMENT"
    reason = "REQUEST_ID_REUSED"


class OutboxFull(BatonError):
    """Changes wait to be published and their limit is reached: the log is away or slow; nothing was changed."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUTBOX_FULL"
    retry_seconds = 5.0


class RevisionExhausted(BatonError):
    """The record has the last revision of its term: it can be written again after a seizure of its bucket."""

    code = "FAILED_PRECONDITION"
    reason = "REVISION_EXHAUSTED"


class RecordTooLarge(BatonError):
    """The record would be larger than an event may be; nothing was changed."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

"""A contract's semantics for a backend: each call parses to a read, a write, a list or a watch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.contract.pages import Filter, Page
from libs.contract.schemas import NEWEST, RecordCorrupt
from libs.ownership.errors import RecordTooLarge
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import Answered, Row, Version
from libs.ownership.rules import Change, Resource

log = logging.getLogger(__name__)


def _unchanged_payload(row: Row) -> bytes:
    return row.payload


def _unchanged(answer: bytes) -> bytes:
    return answer


def _hides_none(row: Row) -> bool:
    return False


def _accept_any(row: Row, version: Version) -> None:
    """Accept the current record as the answer."""


@dataclass(frozen=True, slots=True)
class Read:
    """A read of one record. `answer` makes the reply; for None and for tombstones it raises the contract's not-found
    error."""

    key: str
    answer: Callable[[Row | None], bytes]


@dataclass(frozen=True, slots=True)
class Write:
    """A change of one record. `change` is pure and may be called more than once."""

    key: str
    request_id: str
    request_hash: bytes
    """Hash of the method and the request in deterministic form, REQUEST_HASH_BYTES long."""
    change: Change
    only_checks: bool = False
    """The call only asks whether it would succeed: it gets the answer, and nothing changes (`only_checked`)."""
    under_lock: bool = False
    """The write needs the record's lock and fails while locks are unavailable. Other writes take a lock only after
    repeated conflicts."""
    reply: Callable[[bytes], bytes] = _unchanged
    """Converts the stored answer to the caller's reply."""
    check_late: Callable[[Row, Version], None] = _accept_any
    """Checks the current record against the version that the request made, if the stored answer is gone. Raises if the
    current record must not be returned for the answer."""


@dataclass(frozen=True, slots=True)
class List:
    """A page of records."""

    page: Page
    filter_hash: bytes
    answer: Callable[[Sequence[bytes], str], bytes]
    """Makes the reply from the items and the token of the next page."""
    item: Callable[[Row], bytes] = _unchanged_payload
    """Converts one record to an item. Raises SchemaUnknown, and RecordCorrupt for a record that lists leave out."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A view of records that is kept up to date (see `libs.contract.watches`). `item` converts one record."""

    filter: Filter
    item: Callable[[Row], bytes] = _unchanged_payload
    hides: Callable[[Row], bool] = _hides_none
    """Whether the caller must not learn the key of a record that does not match."""


Parsed = Read | Write | List | Watch


def only_checked(change: Change) -> Change:
    """Turn a change into an answer that changes nothing. Raises the errors of the change and of its commit."""

    def check(row: Row | None, version: Version) -> Answered:
        after = change(row, version)
        if isinstance(after, Answered):
            return after
        size = len(after.payload)
        if size > MAX_PAYLOAD_BYTES:
            raise RecordTooLarge(f"the record would have {size} bytes: at most {MAX_PAYLOAD_BYTES} are allowed")
        return Answered(after.payload if after.answer is None else after.answer, version)

    return check


def item_of(wanted: List | Watch, row: Row) -> bytes | None:
    """The item, or None for a corrupt record: it must not fail the whole list. Raises SchemaUnknown."""
    try:
        return wanted.item(row)
    except RecordCorrupt as error:
        log.warning("%s", error.message)
        return None


class Operations(Protocol):
    """A contract's methods as a backend runs them."""

    service: str
    """Full name, "sandbox.v1.SandboxService"."""
    methods: Sequence[str]
    """Names without the service, "GetSandbox"."""

    def parse(self, method: str, request: bytes, context: CallContext) -> Parsed:
        """Parse and check a request, without effects. Raises InvalidField and errors of the contract."""
        ...

    def check_row(self, row: Row) -> None:
        """Raises UnreadableRecord for a row that does not fit the contract: its key is not valid, or its payload has a
        known schema version and cannot be decoded. Payloads of unknown versions are accepted."""
        ...

    def replaced(self, key: str, content: Resource, now_seconds: float, *, as_kept: bool) -> Change:
        """The change that replaces a corrupt record. Raises InvalidField.

        `as_kept`: the content is a store's own copy, so values that a client could not write today are accepted.
        """
        ...

    def written_seconds(self, row: Row) -> float | None:
        """UNIX time of the record's last write, by the record's own field; None if it has none."""
        ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """Context of a call beside its request."""

    request_id: str
    """The caller's request id, or a generated one."""
    made_id: str
    """Id for a create without one."""
    now_seconds: float
    """UNIX time, for the times in the record."""
    schema_version: int = NEWEST
    """Schema version of the caller."""

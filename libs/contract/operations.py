"""What a backend must know of its contract: one parsed call is a read, a write, a list or a watch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.contract.pages import Filter, Page
from libs.contract.schemas import NEWEST, RecordCorrupt
from libs.ownership.model import Row, Version
from libs.ownership.rules import Change, Resource

log = logging.getLogger(__name__)


def _as_it_is(row: Row) -> bytes:
    return row.payload


def _as_it_is_kept(answer: bytes) -> bytes:
    return answer


def _anything_will_do(row: Row, version: Version) -> None:
    """The record as it is now may stand for any answer."""


@dataclass(frozen=True, slots=True)
class Read:
    """One record. `answer` makes the reply, or raises the contract's not-found error for None and for tombstones."""

    key: str
    answer: Callable[[Row | None], bytes]


@dataclass(frozen=True, slots=True)
class Write:
    """A change of one record. `change` is pure and may be called more than once."""

    key: str
    request_id: str
    request_hash: bytes
    """Of the method and the request in deterministic form, REQUEST_HASH_BYTES long."""
    change: Change
    under_lock: bool = False
    """Made under the record's lock, so not at all while locks cannot be had. Else a lock is asked for only when others
    keep getting ahead of the write."""
    reply: Callable[[bytes], bytes] = _as_it_is_kept
    """What the caller is told, from the answer as the store keeps it."""
    check_late: Callable[[Row, Version], None] = _anything_will_do
    """Of the record as it is now and the version that the request made, when the answer to the request is not kept any
    more: raises where that record would be mistaken for the answer."""


@dataclass(frozen=True, slots=True)
class List:
    """A page of records."""

    page: Page
    filter_hash: bytes
    answer: Callable[[Sequence[bytes], str], bytes]
    """From items and the token of the next page."""
    item: Callable[[Row], bytes] = _as_it_is
    """What is shown of one record. Raises SchemaUnknown, and RecordCorrupt for one that a list leaves out."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A view of records, kept up to date (see `libs.contract.watches`). `item` makes what is shown of one."""

    filter: Filter
    item: Callable[[Row], bytes] = _as_it_is


Parsed = Read | Write | List | Watch


def item_of(wanted: List | Watch, row: Row) -> bytes | None:
    """None: it is left out, so that one record whose content cannot be read fails no list. Raises SchemaUnknown."""
    try:
        return wanted.item(row)
    except RecordCorrupt as error:
        log.warning("%s", error.message)
        return None


class Operations(Protocol):
    """A contract's methods, as a backend runs them."""

    service: str
    """Full name, "sandbox.v1.SandboxService"."""
    methods: Sequence[str]
    """Names without the service, "GetSandbox"."""

    def parse(self, method: str, request: bytes, context: CallContext) -> Parsed:
        """Checks the whole request. Raises InvalidField and whatever else the contract says; has no effect."""
        ...

    def check_row(self, row: Row) -> None:
        """Raises UnreadableRecord for a row that this contract cannot have: another key, or a payload of a known schema
        version that is not the contract's resource. A payload of an unknown version is kept as it is."""
        ...

    def replaced(self, key: str, content: Resource, now_seconds: float, *, as_kept: bool) -> Change:
        """What a corrupt record is replaced by. `as_kept`: the content is a store's own copy, so its values may be ones
        that no client could write today. Raises InvalidField."""
        ...

    def written_seconds(self, row: Row) -> float | None:
        """When the record was written last, as it says itself, UNIX time; None when it does not say."""
        ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """What comes with a call beside its request."""

    request_id: str
    """Made for the caller when the request has none."""
    made_id: str
    """For a create without an id."""
    now_seconds: float
    """UNIX time, for the times in the record."""
    schema_version: int = NEWEST
    """Which one the caller speaks."""

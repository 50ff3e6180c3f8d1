"""What every adapter does alike with records and their served requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from libs.ownership.limits import SERVED_WINDOW
from libs.ownership.model import Record, Row, Served, Store
from libs.ownership.terms import seized_version
from libs.store.port import Listed

ENVELOPE_BYTES = 128
"""About what a record or a served request takes beside its payload, its key and its answer."""


def newest(served: Iterable[Served]) -> tuple[Served, ...]:
    """The newest ones, as many as a release carries, newest last."""
    ordered = sorted(served, key=lambda one: (one.version, one.principal, one.request_id))
    return tuple(ordered[-SERVED_WINDOW:])


def made_by(row: Row) -> Store:
    """The store that made the row's version: a write and a seizure are made by the owner, a release by the one that was
    it."""
    seized = bool(row.bases) and row.version == seized_version(row.bases[-1], row.version.term) > row.bases[-1]
    return row.owner if seized or row.version == row.write_version else row.owner.other


def up_to_other(listed: list[Listed], rest: Iterable[Listed], limit: int) -> list[Listed]:
    """A page that ends before it is full: up to the first row that does not match, which tells that there may be more
    behind it. `rest`: the rows that come next."""
    for one in rest:
        listed.append(one)
        if not one.matches or len(listed) == limit:
            break
    return listed


def size_of(record: Record) -> int:
    """About its bytes on the wire, cheaply."""
    answers = sum(ENVELOPE_BYTES + len(served.answer or b"") for served in record.served)
    return ENVELOPE_BYTES + len(record.row.key) + len(record.row.payload) + answers

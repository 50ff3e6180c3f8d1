"""Records, their served requests and their sizes, as every store handles them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from libs.ownership.limits import SERVED_WINDOW
from libs.ownership.model import Record, Row, Served, Store, Version
from libs.ownership.terms import contained, seized_version
from libs.store.port import Listed

ENVELOPE_BYTES = 128
"""Approximate size of a record without payload and key, or of a served request without its answer."""


def effects_of(rows: Iterable[Row]) -> list[tuple[str, Version]]:
    """Return each key with the newest version of each term whose changes are in the row. A store looks its served
    requests up by these.

    Requests with other versions have no effect in the row; they do not travel with it.
    """
    return [(row.key, version) for row in rows for version in contained(row)]


def newest(served: Iterable[Served]) -> tuple[Served, ...]:
    """Return the newest SERVED_WINDOW requests, newest last: those that a release carries."""
    ordered = sorted(served, key=lambda one: (one.version, one.principal, one.request_id))
    return tuple(ordered[-SERVED_WINDOW:])


def windows_of(served: Iterable[tuple[str, Served]]) -> Mapping[str, tuple[Served, ...]]:
    """Return the newest requests by key."""
    windows: dict[str, list[Served]] = {}
    for key, one in served:
        windows.setdefault(key, []).append(one)
    return {key: newest(window) for key, window in windows.items()}


def made_by(row: Row) -> Store:
    """Return the store that made the row's version. The owner makes a write and a seizure; the owner before makes a
    release."""
    seized = bool(row.bases) and row.version == seized_version(row.bases[-1], row.version.term) > row.bases[-1]
    return row.owner if seized or row.version == row.write_version else row.owner.other


def up_to_other(listed: list[Listed], rest: Iterable[Listed], limit: int) -> list[Listed]:
    """Complete a page that ends before it is full. It ends at the first row that does not match, which shows that more
    rows may follow. `rest`: the rows that come next."""
    for one in rest:
        listed.append(one)
        if not one.matches or len(listed) == limit:
            break
    return listed


def joined(pages: Sequence[Sequence[Listed]], limit: int) -> list[Listed]:
    """Make one page of the pages of several filters, none of which matches a row of another one."""
    listed = sorted((one for page in pages for one in page), key=lambda one: one.row.key.encode())
    # A page that ends with a row that does not match has not examined any row after it.
    ends = [page[-1].row.key.encode() for page in pages if page and not page[-1].matches]
    end = min(ends, default=None)
    return [one for one in listed if end is None or one.row.key.encode() <= end][:limit]


def size_of(record: Record) -> int:
    """Return the approximate size on the wire in bytes, cheaply."""
    answers = sum(ENVELOPE_BYTES + len(served.answer or b"") for served in record.served)
    return ENVELOPE_BYTES + len(record.row.key) + len(record.row.payload) + answers

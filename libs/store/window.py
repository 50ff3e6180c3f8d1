"""Records, their served requests and their sizes, as every store handles them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.ownership.limits import SERVED_WINDOW
from libs.ownership.model import Record, Row, Served, Store, Version
from libs.ownership.terms import contained, seized_version
from libs.store.port import Listed

ENVELOPE_BYTES = 128
"""About what a record or a served request takes beside its payload, its key and its answer."""


def effects_of(rows: Iterable[Row]) -> list[tuple[str, Version]]:
    """By key, the newest version of each term whose changes are in the row: what to ask a store's served requests by.

    Requests with other versions have no effect in the row; they do not travel with it.
    """
    return [(row.key, version) for row in rows for version in contained(row)]


def newest(served: Iterable[Served]) -> tuple[Served, ...]:
    """The newest requests, as many as a release carries, newest last."""
    ordered = sorted(served, key=lambda one: (one.version, one.principal, one.request_id))
    return tuple(ordered[-SERVED_WINDOW:])


def windows_of(served: Iterable[tuple[str, Served]]) -> Mapping[str, tuple[Served, ...]]:
    """By key, the newest requests."""
    windows: dict[str, list[Served]] = {}
    for key, one in served:
        windows.setdefault(key, []).append(one)
    return {key: newest(window) for key, window in windows.items()}


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

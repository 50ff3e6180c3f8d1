"""Merge of two stores' pages of a list. Each store has all records, some of them in an old version.

Rule: of two rows of a name the higher version is the record, and only its store's result of the filter counts. One of
the two rows is always the newest, so the page has every acknowledged record and no old one. A full page does not show
which names follow its last one, so the merged page ends there.

Names are compared as strings: the order of code points is the bytewise order of UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from libs.contract.descriptors import ListShape, varint
from libs.contract.schemas import SchemaUnknown
from libs.ownership.model import Version


class Item(NamedTuple):
    """A row of one store."""

    version: Version
    matches: bool
    data: bytes
    unknown_schema: int = 0
    """Schema version of the row if its store does not understand it; then the store cannot apply the filter. Else 0."""


class HalfPage(NamedTuple):
    """One store's page: the matching rows by name, and whether more may follow."""

    rows: Mapping[str, Item]
    full: bool

    @property
    def end(self) -> str | None:
        """The last name of a full page; None: the page reaches the end of the list."""
        return max(self.rows) if self.full else None


class Merged(NamedTuple):
    items: list[bytes]
    resume: str | None
    """The name after which the next page begins; None: this is the last page."""


def end_of(one: HalfPage, other: HalfPage) -> str | None:
    return min((end for end in (one.end, other.end) if end is not None), default=None)


def unknown_names(mine: HalfPage, other: HalfPage) -> list[str]:
    """Names within the page that only the other store has, to look up in this one."""
    end = end_of(mine, other)
    return [name for name in other.rows if name not in mine.rows and (end is None or name <= end)]


def merge(one: HalfPage, other: HalfPage, looked_up: Mapping[str, Item], limit: int, most_bytes: int) -> Merged:
    """`looked_up`: the rows of `unknown_names`, from both stores. A name that is missing there has one row.

    Raises SchemaUnknown for a record that no store understands.
    """
    end = end_of(one, other)
    names = sorted(name for name in {*one.rows, *other.rows} if end is None or name <= end)
    items: list[bytes] = []
    size = 0
    last = ""
    for name in names:
        rows = [rows[name] for rows in (one.rows, other.rows, looked_up) if name in rows]
        # At one version both stores apply the filter alike, unless a store did not understand the record when the event
        # arrived: until the next write it has no values to filter by.
        newest = max(rows, key=lambda row: (row.version, not row.unknown_schema, row.matches))
        if newest.unknown_schema:
            raise SchemaUnknown(newest.unknown_schema, "the store that has its newest version understands older", name)
        if newest.matches:
            if len(items) == limit or (items and size + len(newest.data) > most_bytes):
                return Merged(items, last)
            items.append(newest.data)
            size += len(newest.data)
        last = name
    return Merged(items, end)


def frame(shape: ListShape, items: Sequence[bytes], token: str) -> bytes:
    """The serialized reply, from serialized items, without parsing them."""
    parts: list[bytes] = []
    for item in items:
        parts += (shape.items_tag, varint(len(item)), item)
    if token:
        data = token.encode()
        parts += (shape.token_tag, varint(len(data)), data)
    return b"".join(parts)

"""One page out of two stores' pages, each of which has all records, some of them old.

Rule: of two rows of a name the higher version is the record, and only its store's verdict on the filter counts. One of
the two rows is always the newest, so nothing acknowledged is missed and nothing old is shown. Beyond the last name of a
page that was full its store is not known, so the merged page ends there.

Names are compared as strings: the order of code points is the bytewise order of UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from libs.contract.descriptors import ListShape, varint
from libs.contract.schemas import SchemaUnknown
from libs.ownership.model import Version


class Item(NamedTuple):
    """A row as its store sees it."""

    version: Version
    matches: bool
    data: bytes
    unknown_schema: int = 0
    """Its schema version, when its store does not understand it and so says nothing of the rest."""


class Half(NamedTuple):
    """One store's page: the rows that match there, by name, and whether there may be more after the last."""

    rows: Mapping[str, Item]
    full: bool

    @property
    def end(self) -> str | None:
        """The name beyond which this store is not known; None: it is known to its end."""
        return max(self.rows) if self.full else None


class Merged(NamedTuple):
    items: list[bytes]
    resume: str | None
    """The name after which the next page begins; None: this was the last."""


def end_of(one: Half, other: Half) -> str | None:
    return min((end for end in (one.end, other.end) if end is not None), default=None)


def unknown_names(mine: Half, other: Half) -> list[str]:
    """What must be looked up at my store: names within the page that only the other one has."""
    end = end_of(mine, other)
    return [name for name in other.rows if name not in mine.rows and (end is None or name <= end)]


def merge(one: Half, other: Half, looked_up: Mapping[str, Item], limit: int, most_bytes: int) -> Merged:
    """`looked_up`: what came of `unknown_names` of both stores; a name that is not there either has no second row.

    Raises SchemaUnknown for a record that is shown by nobody who understands it.
    """
    end = end_of(one, other)
    names = sorted(name for name in {*one.rows, *other.rows} if end is None or name <= end)
    items: list[bytes] = []
    size = 0
    last = ""
    for name in names:
        rows = [rows[name] for rows in (one.rows, other.rows, looked_up) if name in rows]
        # Of one version both verdicts are the same, unless a store did not understand the record when it came: then it
        # cannot tell by what to find it, until the next write.
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
    """The serialized reply, from serialized items: nothing is parsed."""
    parts: list[bytes] = []
    for item in items:
        parts += (shape.items_tag, varint(len(item)), item)
    if token:
        data = token.encode()
        parts += (shape.token_tag, varint(len(data)), data)
    return b"".join(parts)

"""Port for reads of a whole store, for copies, comparisons and counts (see `libs.store.port`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol

from libs.ownership.model import Record, Row
from libs.store.connections import Connections


@dataclass(frozen=True, slots=True)
class ExportQuery:
    after: str = ""
    limit: int = 200
    buckets: tuple[int, ...] = ()
    """Only these buckets, in the order of their numbers, one after the other. `after` is then a key of the first
    one."""
    owned_only: bool = False
    keys_only: bool = False
    """Envelopes: no payload, no served requests."""
    keys: tuple[str, ...] = ()
    """Only these keys; empty: all. Not combined with `buckets`."""
    parts: tuple[int, ...] = ()
    """Only rows of these parts, by their stored digests; empty: all."""
    pattern: str = ""
    """Only keys that match this pattern (`libs.ownership.patterns`); empty: all. Not combined with `buckets`."""
    account: str = ""
    """Only records of this account, deleted ones too; empty: all. Not combined with `buckets`. For a contract with
    accounts."""


class Kept(NamedTuple):
    """A row, and the digest that is stored with it. The digest differs from `Row.digest` only if another program has
    written to the row."""

    row: Row
    digest: int
    is_projected: bool = True
    """Whether the columns that lists filter by, and the lease's mark, match the payload."""

    @property
    def content(self) -> int:
        """The digest computed from the row. It differs from `Row.digest` if another program has written to a column
        beside the payload."""
        if self.is_projected:
            return self.row.digest
        edited = blake2b(f"edited {self.row.digest}".encode(), digest_size=8).digest()
        return int.from_bytes(edited, "big")


PARTS = 64


class BucketDigest(NamedTuple):
    bucket: int
    records: int
    owned: int
    digest: int
    """Exclusive or of the rows' stored digests."""
    parts: tuple[int, ...] = ()
    """The same for each of `PARTS` parts, if requested. The stored digest of a row, modulo `PARTS`, is its part: so a
    row that differs between two stores makes its part at one of them, or at both, differ."""


class Missing(NamedTuple):
    """A bucket with fewer rows than were made in it: rows were removed outside the protocol."""

    bucket: int
    counted: int
    found: int


class Census(NamedTuple):
    records: int
    owned_records: int
    owned_buckets: int
    unfilled_records: int = 0
    """How many of the records are rows of the old program that are not completed yet. An estimate until they are
    counted."""


class Inspection(Protocol):
    """Reads of a whole store, for copies and comparisons."""

    async def connections(self) -> Connections | None:
        """Return the connections that this store's processes need, and the number that the database's server allows;
        None if there is no server. May be some seconds old."""
        ...

    async def export(self, query: ExportQuery) -> tuple[list[Record], bool]:
        """Return records by key with the served requests of the retry window, at most about 1 MiB, and whether there
        may be more."""
        ...

    async def keys(self, query: ExportQuery) -> tuple[list[str], bool]:
        """Like `export`, but return the keys only. `keys` is not supported."""
        ...

    async def rows(self, query: ExportQuery) -> tuple[list[Kept], bool]:
        """Like `export`, without served requests. `keys_only` is not supported."""
        ...

    async def digests(self, buckets: Sequence[int] = (), *, parts: bool = False) -> list[BucketDigest]:
        """Return the digests of these buckets, or of all, without the buckets that have no rows. `parts`: with those of
        their parts; for some buckets only."""
        ...

    async def counts(self) -> list[BucketDigest]:
        """Like `digests` of all buckets, but each digest is 0: cheap enough to call every few seconds."""
        ...

    async def missing(self, buckets: Sequence[int] = ()) -> list[Missing]:
        """Return those of these buckets, or of all, that have lost rows, by number. Rows and counts are of one moment.
        Reads the key of every row of these buckets."""
        ...

    async def count_of(self, account: str, most: int) -> int:
        """Count the live records of an account, of either owner, up to `most`. For a contract with accounts."""
        ...

    async def census(self) -> Census:
        """Return the totals of the store. In a large store they may be some seconds old."""
        ...

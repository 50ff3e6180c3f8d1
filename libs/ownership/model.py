"""The words of the ownership protocol, as values. No I/O, no clock; everything is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from hashlib import blake2b
from typing import NamedTuple

from libs.errors import InvalidField
from libs.ownership.limits import MAX_KEY_BYTES, MAX_PRINCIPAL_BYTES, MAX_REQUEST_ID_BYTES

BUCKETS = 1024


class Store(StrEnum):
    """One of the two stores: A is the old one, B the new one."""

    A = "A"
    B = "B"

    @property
    def other(self) -> Store:
        return Store.B if self is Store.A else Store.A


class Version(NamedTuple):
    """Of a record. Compared by term, then by revision; a term begins only with a seizure."""

    term: int
    revision: int

    @property
    def etag(self) -> str:
        """The etag of the write that made this version."""
        return f'"{self.term}-{self.revision}"'


NEVER = Version(0, 0)
"""Before any version."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that has had its one effect on a record."""

    principal: str
    request_id: str
    request_hash: bytes
    version: Version
    """The version that the request made."""
    answer: bytes | None
    """The serialized answer; None when it was too large to keep (`limits.MAX_ANSWER_BYTES`) or had to make room."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record as one store has it: live, deleted (a tombstone), or never created (a stub: no payload)."""

    key: str
    version: Version
    owner: Store
    write_version: Version
    live: bool
    payload: bytes
    schema_version: int
    bases: tuple[Version, ...] = ()
    """Its versions before the seizures that it went through, oldest first."""
    lease_seconds: float = field(default=0.0, compare=False)
    """For a write: how long this store has known the lease that the payload shows, in its ticks. It never travels."""

    @property
    def digest(self) -> int:
        """64 bits over what both stores must agree on: key, version, owner, payload."""
        content = blake2b(self.payload, digest_size=16).digest()
        head = f"{self.key}\0{self.version.term}\0{self.version.revision}\0{self.owner}\0".encode()
        return int.from_bytes(blake2b(head + content, digest_size=8).digest(), "big")

    @property
    def envelope_digest(self) -> int:
        """64 bits over the rest that both stores must agree on: what a rule or a client sees beside the payload."""
        rest = (self.key, *self.write_version, int(self.live), self.schema_version, *self.bases)
        return int.from_bytes(blake2b(repr(rest).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class BucketOwner:
    """Who owns the records of one bucket that do not exist yet."""

    bucket: int
    term: int
    version: int
    owner: Store


@dataclass(frozen=True, slots=True)
class Found:
    """The state of one key in one statement: its row, the owner of its bucket, and the request if it was served."""

    key: str
    row: Row | None
    bucket_owner: BucketOwner
    served: Served | None = None

    @property
    def owner(self) -> Store:
        return self.row.owner if self.row else self.bucket_owner.owner

    @property
    def version(self) -> Version:
        return self.row.version if self.row else NEVER


@dataclass(frozen=True, slots=True)
class Record:
    """A row on its way to the other store, with the requests it has served (newest last)."""

    row: Row
    served: tuple[Served, ...]
    origin: Store
    """The store that made this version."""
    made_seconds: float
    """When, in UNIX seconds of that store's clock. For measuring lag; nothing is ordered by it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A client's write on its way to a store: all that the protocol needs to know of it."""

    key: str
    principal: str
    request_id: str
    request_hash: bytes
    traceparent: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidField: what is remembered of a call must fit an event (see `limits`)."""
        for name, value, most in (
            ("key", self.key, MAX_KEY_BYTES),
            ("principal", self.principal, MAX_PRINCIPAL_BYTES),
            ("request_id", self.request_id, MAX_REQUEST_ID_BYTES),
        ):
            if not value or len(value.encode()) > most:
                raise InvalidField(name, value, f"1 to {most} bytes")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer without a change: the request was served before, or it asks for a check only.

    A write that has nothing to change still makes a version. If its request were not stored as served, an earlier
    attempt of the same request could have its effect after the retry was answered.
    """

    answer: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class Changed:
    """A change to commit: row, served request and event, all or none."""

    row: Row
    served: Served
    answer: bytes

    @property
    def version(self) -> Version:
        return self.row.version


Decide = Callable[[Found], Changed | Answered]
"""Decide on a write from what was found of its key. May be called more than once and must not have effects."""


class Outcome(Enum):
    """Of a release, for one key."""

    RELEASE = "release"
    """Owned here: commit the row in `Release.row`."""
    RELEASED = "released"
    """Given up before, or never owned here: return the row in `Release.row` as it is."""
    ABSENT = "absent"
    """There is no record, its bucket owner is owned here and was not asked for."""
    NOT_OWNED = "not owned"
    """There is no record here and its bucket owner is owned elsewhere."""
    TOO_LARGE = "too large"
    """Owned here, and larger than an event may be: it stays until its owner has made it smaller or deleted it."""
    EXHAUSTED = "exhausted"
    """Owned here, with the last revision that a database counts to: it stays until a seizure restarts the revision."""


def visible(row: Row | None, bucket_owner: BucketOwner) -> Row | None:
    """Return the row unless its term is below its bucket's: such a row is hidden until the seizer's row replaces it."""
    return row if row is not None and row.version.term >= bucket_owner.term else None


def bases_text(bases: Sequence[Version]) -> str:
    """Encode bases for a database's column: "0.12 2.31"."""
    return " ".join(f"{term}.{revision}" for term, revision in bases) if bases else ""


def bases_of(text: str | None) -> tuple[Version, ...]:
    """Decode `bases_text`; a column that is NULL or empty gives no bases."""
    if not text:
        return ()
    return tuple(Version(*map(int, base.split("."))) for base in text.split(" "))


def bucket_of(key: str) -> int:
    """The bucket of a key, 0 to 1023: the unit of canary, of bucket owner and of digests."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % BUCKETS

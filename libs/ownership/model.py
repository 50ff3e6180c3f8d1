"""The values of the ownership protocol. Frozen, without I/O or a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from libs.errors import InvalidField
from libs.ownership.limits import MAX_KEY_BYTES, MAX_PRINCIPAL_BYTES, MAX_REQUEST_ID_BYTES, REQUEST_NAME_BYTES

BUCKETS = 1024


class Store(StrEnum):
    """One of the two stores: A is the old one, B the new one."""

    A = "A"
    B = "B"

    @property
    def other(self) -> Store:
        return Store.B if self is Store.A else Store.A


class Version(NamedTuple):
    """Version of a record. Versions compare by term, then by revision. Only a seizure begins a new term."""

    term: int
    revision: int

    @property
    def etag(self) -> str:
        """Etag of a write that made this version."""
        return f'"{self.term}-{self.revision}"'


ANONYMOUS = "anonymous"
"""Principal of requests that are served without regard to their callers, and subject of a caller without an
identity."""

NEVER = Version(0, 0)
"""Version of a record that was never written, lower than every other."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request whose effect was committed."""

    principal: str
    request_id: str
    request_hash: bytes
    version: Version
    """The version that the request's effect made."""
    answer: bytes | None = field(repr=False)
    """The serialized answer. None if it was larger than `limits.MAX_ANSWER_BYTES` or was dropped from a full event."""

    @property
    def name(self) -> bytes:
        """A digest of the request and of the version that it made, with which a bulk release names it."""
        content = repr((self.principal, self.request_id, self.request_hash, *self.version))
        return blake2b(content.encode(), digest_size=REQUEST_NAME_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Row:
    """A record in one store: live, deleted (a tombstone), or never created (a stub, without payload)."""

    key: str
    version: Version
    owner: Store
    write_version: Version
    live: bool
    payload: bytes = field(repr=False)
    schema_version: int
    bases: tuple[Version, ...] = ()
    """Versions that the record had before each of its seizures, oldest first."""
    lease_seconds: float = field(default=0.0, compare=False)
    """Time since this store first saw the lease in the payload, in its ticks. Set for a write only; not replicated."""

    @property
    def head(self) -> Head:
        return Head(self.key, self.version, self.owner, self.digest, self.bases)

    def released(self, to: Store) -> tuple[Head, Head]:
        """Return the row's head before and after its release to this store. The payload is read once."""
        key, version, content = self.key, self.version, self.content
        after = Version(version.term, version.revision + 1)
        return (
            Head(key, version, self.owner, _digest(key, version, self.owner, content), self.bases),
            Head(key, after, to, _digest(key, after, to, content), self.bases),
        )

    @property
    def digest(self) -> int:
        """64-bit digest of key, version, owner and payload, which must be equal at both stores."""
        return _digest(self.key, self.version, self.owner, self.content)

    @property
    def content(self) -> bytes:
        """128-bit digest of the payload."""
        return blake2b(self.payload, digest_size=16).digest()

    @property
    def envelope_digest(self) -> int:
        """64-bit digest of the other fields that must be equal at both stores: those that a rule or a client reads."""
        rest = (self.key, *self.write_version, int(self.live), self.schema_version, *self.bases)
        return int.from_bytes(blake2b(repr(rest).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class BucketOwner:
    """The store that may create records in a bucket. The version grows with each change of the owner."""

    bucket: int
    term: int
    version: int
    owner: Store


@dataclass(frozen=True, slots=True)
class Found:
    """The state of one key at one moment: its row, the owner of its bucket, and the served requests of one id."""

    key: str
    row: Row | None
    bucket_owner: BucketOwner
    served: tuple[Served, ...] = ()
    """Served requests with the call's request_id, of every principal. Set for a write only."""

    @property
    def owner(self) -> Store:
        return self.row.owner if self.row else self.bucket_owner.owner

    @property
    def version(self) -> Version:
        return self.row.version if self.row else NEVER


@dataclass(frozen=True, slots=True)
class Record:
    """A row on its way to the other store, with the record's served requests (newest last)."""

    row: Row
    served: tuple[Served, ...]
    origin: Store
    """The store that made this version."""
    made_seconds: float
    """Time at which `origin` made it, in UNIX seconds of that store's clock. Used to measure lag, never for order."""


class Head(NamedTuple):
    """A row without its payload."""

    key: str
    version: Version
    owner: Store
    digest: int
    bases: tuple[Version, ...] = ()


class BulkEntry(NamedTuple):
    """One record of a bulk release, without its payload: the new owner has the payload already, or fetches it."""

    key: str
    version: Version
    """The version that the release made."""
    before: int
    """Digest of the row that was released: of its key, version, owner and payload."""
    digest: int
    """Digest of the row after the release."""
    requests: tuple[bytes, ...] = ()
    """`Served.name` of the requests that a release carries."""


@dataclass(frozen=True, slots=True)
class BulkRelease:
    """Many records that one store has released in one transaction."""

    to: Store
    entries: tuple[BulkEntry, ...]
    made_seconds: float
    """See `Record.made_seconds`."""

    @property
    def origin(self) -> Store:
        return self.to.other


@dataclass(frozen=True, slots=True)
class Call:
    """The fields of a client's write that the protocol uses."""

    key: str
    principal: str
    """Principal under which the request is stored once it is served."""
    request_id: str
    request_hash: bytes
    traceparent: str = ""
    subject: str = ""
    """Subject of the caller; "" if it is the principal."""

    def is_of_caller(self, principal: str) -> bool:
        """Whether an earlier attempt of this request may have been served under that principal.

        A change of the callers' identities switches between `anonymous` and the subject, process by process, so an
        attempt may be stored under either. An attempt with an identity may be repeated at a process without
        authentication, where every caller reaches every record in any case.
        """
        subject = self.subject or self.principal
        return subject == ANONYMOUS or principal in (subject, self.principal, ANONYMOUS)

    def __post_init__(self) -> None:
        """Raises InvalidField if a field is empty or would not fit an event (see `limits`)."""
        for name, value, most in (
            ("key", self.key, MAX_KEY_BYTES),
            ("principal", self.principal, MAX_PRINCIPAL_BYTES),
            ("request_id", self.request_id, MAX_REQUEST_ID_BYTES),
        ):
            if not value or len(value.encode()) > most:
                raise InvalidField(name, value, f"1 to {most} bytes")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer without a change: the request was served before, or it only asks for a check.

    A write that changes no field still makes a version. If its request were not stored as served, an earlier attempt
    of the same request could take effect after the retry was answered.
    """

    answer: bytes = field(repr=False)
    version: Version


@dataclass(frozen=True, slots=True)
class Changed:
    """A change to commit. Row, served request and event are committed together or not at all."""

    row: Row
    served: Served
    answer: bytes = field(repr=False)

    @property
    def version(self) -> Version:
        return self.row.version


Decide = Callable[[Found], Changed | Answered]
"""Decides on a write from the state of its key. It may run more than once and must not have side effects."""


class Outcome(Enum):
    """The outcome of a release for one key."""

    RELEASE = "release"
    """This store owns the record: commit the row in `Release.row`."""
    RELEASED = "released"
    """This store does not own the record: return the row in `Release.row` as it is."""
    ABSENT = "absent"
    """There is no record. This store owns the bucket, and `create` was False."""
    NOT_OWNED = "not owned"
    """There is no record here, and the other store owns the bucket."""
    TOO_LARGE = "too large"
    """This store owns the record, but it exceeds the maximum size of an event: it stays until it is made smaller or
    deleted."""
    EXHAUSTED = "exhausted"
    """This store owns the record, but its revision is a database's largest integer: it stays until a seizure restarts
    the revision."""


def _digest(key: str, version: Version, owner: Store, content: bytes) -> int:
    term, revision = version
    head = f"{key}\0{term}\0{revision}\0{owner}\0".encode()
    return int.from_bytes(blake2b(head + content, digest_size=8).digest(), "big")


def visible(row: Row | None, bucket_owner: BucketOwner) -> Row | None:
    """Return the row, or None if it is hidden: its term is below its bucket's (see `terms`)."""
    return row if row is not None and row.version.term >= bucket_owner.term else None


def bases_text(bases: Sequence[Version]) -> str:
    """Encode bases for a database column: "0.12 2.31"."""
    return " ".join(f"{term}.{revision}" for term, revision in bases) if bases else ""


def bases_of(text: str | None) -> tuple[Version, ...]:
    """Decode `bases_text`. A column that is NULL or empty decodes to no bases."""
    if not text:
        return ()
    return tuple(Version(*map(int, base.split("."))) for base in text.split(" "))


@lru_cache(maxsize=8192)
def bucket_of(key: str) -> int:
    """The bucket of a key, 0 to 1023. Canary, bucket owners and digests work by bucket."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % BUCKETS

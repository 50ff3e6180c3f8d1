"""What a backend's database must do: small ports, one adapter per technology, one conformance suite for all.

Every adapter promises:

* Commit means durable: a method that changes something returns only when the change survives a power loss.
* A change of a row, its outbox entry and its served request commit together, or none does.
* Every write fences in its own statement: the row, or for a new record its bucket, still names this store as owner,
  and the store is not fenced. A decision that ignores ownership is refused (NotOwner) and changes nothing.
* What a decision was made on is a condition of the commit: when owner or version is no longer what was read, the
  adapter starts again from the read. It never applies a decision to another row than it was made for.
* No row of a record, a bucket or a served request is removed but by `Upkeep.prune`, by `Seizures.settle`, and by what
  apply replaces after a seizure; a database refuses it to everybody else. Rows are counted by bucket, apart from the
  bucket's row.
* Every wait has a bound: a busy record ends in `LockTimeout`, a full pool or queue in `Overloaded`, a database that is
  away in `StoreUnavailable`. After `StoreUnavailable` the outcome of a change is unknown.
* A cancelled caller leaves either the whole change or nothing.

The rules are in `libs.ownership.rules`, the procedures in `libs.store.engine`. An adapter implements
`libs.store.transaction`, under the engine, and the reads; it stores, orders and fences (docs/adapters.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

from libs.contract.pages import Page
from libs.errors import BatonError
from libs.ownership.model import Answered, BucketOwner, Call, Changed, Decide, Found, Outcome, Record, Row, Store
from libs.store.aside import Aside
from libs.store.connections import Connections
from libs.store.outbox import Outbox
from libs.store.recovery import Recovery, Seizures


class UnknownPartition(BatonError):
    """Somebody else applies this partition of the log now."""


class Listed(NamedTuple):
    row: Row
    matches: bool


class Records(Protocol):
    """Calls of clients. Strict: each sees every change that was committed before it began."""

    async def read(self, key: str) -> Found:
        """Read row and bucket owner in one statement, begun after the call and outside every open transaction."""
        ...

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        """As `read`, in the order of `keys`."""
        ...

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        """Looks the key and the request up, asks `decide`, commits what it says under the condition that nothing
        changed meanwhile, else starts again, a bounded number of times (then LockTimeout).

        Raises what `decide` raises, with nothing changed; OutboxFull; LockTimeout; StoreUnavailable.
        A new record is only made while its bucket's owner is held (see `Transfers.release_bucket`).
        """
        ...

    async def page(self, page: Page) -> list[Listed]:
        """In bytewise key order, whoever owns the rows. Stubs (never created) do not match.

        With `page.keys` all of these that were created, whether they match or not. Else those that match, at most
        `page.limit`. The work is bounded, in rows and in time: if the page is not full by then, its last row is one
        that does not match, and the next page begins after it."""
        ...


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    key: str
    outcome: Outcome | None
    """RELEASE and RELEASED both mean: `record` is what the other store may adopt. None: busy, ask again."""
    record: Record | None
    bucket_owner: BucketOwner


@dataclass(frozen=True, slots=True)
class Released:
    results: tuple[ReleaseResult, ...]
    remaining: tuple[str, ...] = ()
    """Keys with which nothing was done, since the answer had reached RELEASE_ANSWER_BYTES."""


class Position(NamedTuple):
    """Where a feed stands in one partition of the log: `next` moves to `after` if it is still `before`."""

    partition: int
    before: int
    after: int
    mark: str = ""
    """Of the event before `after` (`libs.eventlog.identity`)."""


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that could not be applied, with the reason."""

    partition: int
    offset: int
    key: str
    reason: str
    event: bytes
    headers: bytes = b""
    """Of its message, as `libs.eventlog.headers` packs them."""
    topic: str = ""
    """The log that it is in; "" if an earlier version parked it."""


@dataclass(frozen=True, slots=True)
class FeedStep:
    """What one read of the log brought, to be committed with what it applies."""

    positions: tuple[Position, ...]
    parked: tuple[Parked, ...] = ()
    skipped: int = 0
    """Events that this store made itself and heartbeats: counted as old."""


class Applied(NamedTuple):
    """The records that are neither went to the journal of conflicts."""

    applied: int
    old: int


class Transfers(Protocol):
    """Moving records and bucket owners between the stores."""

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        """Gives records up, by `decide_release`; each with the served requests of the retry window, read in a
        statement begun after the row was locked, both in the answer and in its event. May use the outbox's reserve;
        beyond it the keys are busy. A row that is locked longer than 300 ms is busy."""
        ...

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        """Keeps each record whose version is higher than what is here; keeps their served requests either way; makes
        no outbox entry. With a step, positions move in the same transaction; UnknownPartition when one is not where
        the step says, with nothing changed."""
        ...

    async def bucket_owners(self, buckets: Sequence[int] = ()) -> list[BucketOwner]:
        """Of these buckets, or of all, by number."""
        ...

    async def release_bucket(self, bucket: int, to: Store) -> BucketOwner:
        """Version + 1, owner = `to`, if it is owned here; waits for creates in this bucket that are under way. Once it
        has committed this store creates nothing in the bucket. Returns what stands here now."""
        ...

    async def adopt_bucket(
        self, bucket_owner: BucketOwner, *, despite_conflicts: bool = False
    ) -> tuple[bool, BucketOwner]:
        """Takes exactly this version, if what is here is lower, with the same term, no row of the bucket is hidden and,
        unless `despite_conflicts`, the journal has no open conflict of the bucket. Returns what stands here now."""
        ...

    async def return_bucket(self, bucket_owner: BucketOwner) -> BucketOwner | None:
        """Declines a bucket that the other store released to this one in exactly this version, open conflicts or not
        (see `declined_bucket`). None, with no change, if this store has adopted it or knows a later version."""
        ...


@dataclass(frozen=True, slots=True)
class FeedState:
    next_offsets: Mapping[int, int] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)
    """By partition, of the last event that was read; "" where it is not known."""
    applied: int = 0
    old: int = 0
    parked: int = 0
    journaled: int = 0
    parked_now: int = 0

    @property
    def read(self) -> int:
        return self.applied + self.old + self.parked + self.journaled


class Feed(Protocol):
    """Where this store stands in the log."""

    async def state(self) -> FeedState: ...

    async def parked(self, limit: int, position: tuple[int, int] | None = None) -> list[Parked]:
        """Events that wait to be tried again, oldest first; or only the one of this partition and offset."""
        ...

    async def parked_after(self, position: tuple[int, int], limit: int) -> list[Parked]:
        """Parked events beyond this partition and offset, in the order of their places."""
        ...

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        """Applies the record of a parked event and takes it off the list."""
        ...

    async def drop(self, partition: int, offset: int) -> bool:
        """Takes a parked event off the list without applying it. False: it is not there."""
        ...

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        """Moves the feed to these offsets of another log, also back, and forgets the marks."""
        ...

    async def claim(self, partitions: int) -> Sequence[int]:
        """The partitions that this process applies now. One process at a time has a partition; a store with one process
        has all. Called again and again: partitions come and go with processes."""
        ...


@dataclass(frozen=True, slots=True)
class ExportQuery:
    after: str = ""
    limit: int = 200
    buckets: tuple[int, ...] = ()
    """Only of these, by rising number, one after the other; `after` then is of the first one."""
    owned_only: bool = False
    keys_only: bool = False
    """Envelopes: no payload, no served requests."""
    keys: tuple[str, ...] = ()
    """When given, of these alone; not with buckets."""


class Kept(NamedTuple):
    """A row, and its digest as it is kept beside it: another one than `Row.digest` only if somebody else wrote here."""

    row: Row
    digest: int
    is_projected: bool = True
    """Whether the columns that lists filter by, and the lease's mark, show what the payload holds."""

    @property
    def content(self) -> int:
        """The digest made anew from the row; another one if a column beside the payload was written by somebody
        else."""
        if self.is_projected:
            return self.row.digest
        edited = blake2b(f"edited {self.row.digest}".encode(), digest_size=8).digest()
        return int.from_bytes(edited, "big")


class BucketDigest(NamedTuple):
    bucket: int
    records: int
    owned: int
    digest: int
    """Exclusive or of the rows' digests as they are kept."""


class Missing(NamedTuple):
    """A bucket with fewer rows than were made in it: rows went another way than by the protocol."""

    bucket: int
    counted: int
    found: int


class Census(NamedTuple):
    records: int
    owned_records: int
    owned_buckets: int
    unfilled_records: int = 0
    """Rows of the old program among them that are not completed yet; an estimate until they are counted."""


class Inspection(Protocol):
    """Looking at a whole store, for copying and comparing."""

    async def connections(self) -> Connections | None:
        """What this process and its like take of what the database's server allows; None where there is no server.
        May be some seconds old."""
        ...

    async def export(self, query: ExportQuery) -> tuple[list[Record], bool]:
        """By key, with the served requests of the retry window; at most about 1 MiB. True: there may be more."""
        ...

    async def rows(self, query: ExportQuery) -> tuple[list[Kept], bool]:
        """As `export`, without served requests; `keys_only` is not for it."""
        ...

    async def digests(self, buckets: Sequence[int] = ()) -> list[BucketDigest]:
        """Of these buckets, or of all; buckets without a row are left out."""
        ...

    async def counts(self) -> list[BucketDigest]:
        """As `digests` of all buckets, but each digest is 0: for who asks every few seconds."""
        ...

    async def missing(self, buckets: Sequence[int] = ()) -> list[Missing]:
        """Of these buckets, or of all, those that have lost rows, by number; rows and counts of one moment. Looks at
        the key of every row of these buckets."""
        ...

    async def census(self) -> Census:
        """May be some seconds old in a large store."""
        ...


class UnknownPosition(BatonError):
    """The position is not one of this database, or so much has changed since that a whole view is less work."""


MOST_CHANGED = 10_000
"""Keys that one answer of `Watch.since` may have."""


@dataclass(frozen=True, slots=True)
class Since:
    """What was written after one position and before another."""

    keys: tuple[str, ...]
    """Each once, in no order."""
    position: str


class Watch(Protocol):
    """Which records are written, by their owner here or by apply. Handoffs are no writes; stubs are no records.

    A position is a text of the adapter's own, small enough for a token. It outlives the process.
    """

    async def now(self) -> str:
        """A position. Every write that a read begun after this call does not see is after it."""
        ...

    async def since(self, position: str, wait_seconds: float) -> Since:
        """Keys of all records that were written after the position and whose write a read begun after this call sees;
        waits for a first one. None is left out, however late its write commits. Some may come again.

        Raises UnknownPosition, also when there are more than MOST_CHANGED of them."""
        ...


class Upkeep(Protocol):
    """What a store needs done from time to time by one of its processes."""

    async def tick(self, elapsed_seconds: float) -> None:
        """Advances the store's ticks by monotonic time that this process has seen go by. A no-op in a process that
        does not hold the store's clock."""
        ...

    async def prune(self) -> int:
        """Forgets served requests that are older than the retry window in ticks. Bounded work; returns how many."""
        ...


class StorePorts(Protocol):
    """An open store: the ports above, over one database. Closing is the adapter's context manager's job."""

    store: Store
    backend: str
    """For status: "sqlite 3.40", "postgresql 15"."""
    records: Records
    transfers: Transfers
    outbox: Outbox
    aside: Aside
    feed: Feed
    inspection: Inspection
    watch: Watch
    upkeep: Upkeep
    recovery: Recovery
    seizures: Seizures

    @property
    def connections_in_use(self) -> int:
        """Database connections that are with somebody now; 0 where there is no pool of them."""
        ...

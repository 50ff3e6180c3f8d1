"""Ports of a store's database: small, with one adapter for each database and one conformance suite for all.

Every adapter promises:

* Commit means durable: a method that changes something returns only when the change survives a power loss.
* A change of a row, its outbox entry and its served request commit together or not at all.
* Every write is fenced in its own statement: the row, or for a new record its bucket, still names this store as owner,
  and the store is not fenced. A decision that ignores ownership is refused (NotOwner) and changes nothing.
* The state that a decision was based on is a condition of the commit. If owner or version have changed since the read,
  the adapter starts again from the read. It never applies a decision to another row than it was made for.
* Rows of records, buckets and served requests are removed only by `Upkeep.prune`, by `Seizures.settle`, and by apply
  for rows that it replaces after a seizure. The database refuses every other removal. Rows are counted by bucket, in
  another row than the bucket's own.
* Every wait has a bound: a busy record ends in `LockTimeout`, a full pool or queue in `Overloaded`, a database that is
  out of reach in `StoreUnavailable`. After `StoreUnavailable` the outcome of a change is unknown.
* If the caller is cancelled, either the whole change is made or nothing.

The rules are in `libs.ownership.rules`, the procedures in `libs.store.engine`. An adapter implements the reads, and
`libs.store.transaction`, which the engine is written over. It stores, orders and fences (docs/adapters.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from libs.contract.pages import Page
from libs.errors import BatonError
from libs.ownership.model import (
    Answered,
    BucketOwner,
    BulkEntry,
    BulkRelease,
    Call,
    Changed,
    Decide,
    Found,
    Outcome,
    Record,
    Row,
    Store,
)
from libs.store.aside import Aside
from libs.store.connections import PoolState
from libs.store.inspection import Inspection
from libs.store.outbox import Outbox
from libs.store.recovery import Recovery, Seizures


class UnknownPartition(BatonError):
    """Another process applies this partition of the log now."""


class Listed(NamedTuple):
    row: Row
    matches: bool


class Records(Protocol):
    """Calls of clients. Each is strict: it sees every change that was committed before it began."""

    async def read(self, key: str) -> Found:
        """Read row and bucket owner in one statement, which begins after the call and outside any open transaction."""
        ...

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        """Like `read`. The results are in the order of `keys`."""
        ...

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        """Look up key and request, ask `decide`, and commit its decision if nothing changed since the look-up.

        If something changed, start again, a bounded number of times (then LockTimeout). A new record is made only while
        its bucket's owner is held (see `Transfers.release_buckets`).

        Raises the errors of `decide`, with nothing changed; OutboxFull; LockTimeout; StoreUnavailable.
        """
        ...

    async def page(self, page: Page) -> list[Listed]:
        """Return rows of either owner in bytewise key order. Stubs (never created) do not match.

        With `page.keys`: all of these records that were created, whether or not they match. Otherwise: the records that
        match, at most `page.limit`. The work is bounded in rows and in time. If a bound ends the page before it is
        full, its last row is one that does not match, and the next page begins after it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    key: str
    outcome: Outcome | None
    """RELEASE or RELEASED: the other store may adopt `record`. None: the record is busy, ask again."""
    record: Record | None
    bucket_owner: BucketOwner


@dataclass(frozen=True, slots=True)
class Released:
    results: tuple[ReleaseResult, ...]
    remaining: tuple[str, ...] = ()
    """Keys that the release did not reach, because the answer had reached RELEASE_ANSWER_BYTES."""


class Position(NamedTuple):
    """A move of the feed in one partition of the log: the next offset becomes `after` if it is still `before`."""

    partition: int
    before: int
    after: int
    mark: str = ""
    """Mark of the event before `after` (`libs.eventlog.identity`)."""


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that could not be applied, with the reason."""

    partition: int
    offset: int
    key: str
    reason: str
    event: bytes = field(repr=False)
    headers: bytes = b""
    """Headers of its message, packed by `libs.eventlog.headers`."""
    topic: str = ""
    """The log that contains it; "" if an earlier version of the program parked it."""
    unauthenticated: bool = False
    """Whether it has no right code. Only the last ones are kept (`libs.store.limits`)."""


@dataclass(frozen=True, slots=True)
class FeedStep:
    """The result of one read of the log, committed together with the changes that it applies."""

    positions: tuple[Position, ...]
    parked: tuple[Parked, ...] = ()
    skipped: int = 0
    """Events that this store made itself, and heartbeats. They count as old."""
    bulk: int = 0
    """Bulk releases, which were taken before. They count as applied."""


class Applied(NamedTuple):
    """Number of records applied, and of records that were old. The others went to the journal of conflicts."""

    applied: int
    old: int


@dataclass(frozen=True, slots=True)
class BulkReleased:
    """The result of one transaction of a bulk release."""

    event: bytes = field(default=b"", repr=False)
    """The event in the outbox; b"" if no record was released."""
    released: int = 0
    last: str = ""
    """Key of the last record that was examined; "" if there are no more."""
    is_full: bool = False
    """No record was released because the outbox is full."""
    locked_seconds: float = field(default=0.0, compare=False)
    """Time from the lock of the rows to the commit."""


class Taken(NamedTuple):
    """The result of applying a bulk release."""

    taken: int
    old: int
    missing: tuple[BulkEntry, ...]
    """Entries whose row or requests are incomplete here: see `rules.Take.FETCH`."""


class Transfers(Protocol):
    """Moving records and bucket owners between the stores."""

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        """Give records to the other store, by `decide_release`.

        Each record carries the served requests of the retry window, both in the answer and in its event. They are read
        in a statement that begins after the row was locked, or from one snapshot with the row, on whose version the
        release is then conditional. Releases may use the outbox's reserve; keys beyond it are
        busy. A row that stays locked for more than 300 ms is busy.
        """
        ...

    async def release_bulk(self, buckets: Sequence[int], to: Store, after: str = "") -> BulkReleased:
        """Give the next records of these buckets that this store owns to the other store, in one transaction and one
        event without payloads, by `decide_bulk_release`.

        `buckets`: rising numbers. Records after the key `after`, in the order of buckets and keys; at most BULK_ROWS,
        and so few that their locks are held for about BULK_LOCK_SECONDS. Leaves out rows that are locked, too large or
        exhausted. A release may use the outbox's reserve.
        """
        ...

    async def take(self, bulk: BulkRelease) -> Taken:
        """Apply a bulk release of the other store, by `decide_take`. Make no outbox entry."""
        ...

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        """Store each record whose version is higher than the one here. Learn their served requests in either case. Make
        no outbox entry.

        With a step, the positions move in the same transaction. If the feed is not at a position of the step, raises
        UnknownPartition, with nothing changed.
        """
        ...

    async def bucket_owners(self, buckets: Sequence[int] = ()) -> list[BucketOwner]:
        """Return the owners of these buckets, or of all, in the order of their numbers."""
        ...

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> list[BucketOwner]:
        """Release these buckets: set the owner to `to` and raise the version by 1, if this store owns the bucket and
        the journal has no open conflict in it. Wait for creates in these buckets that are under way: after the commit
        this store creates no record in them. Return the current bucket owners in the order of `buckets`."""
        ...

    async def release_bucket(self, bucket: int, to: Store) -> BucketOwner:
        """`release_buckets` of one bucket."""
        ...

    async def adopt_buckets(
        self, bucket_owners: Sequence[BucketOwner], *, despite_conflicts: bool = False
    ) -> list[tuple[bool, BucketOwner]]:
        """Adopt these buckets: take exactly this version if the stored one is lower and of the same term, no row of the
        bucket is hidden and, unless `despite_conflicts`, the journal has no open conflict in the bucket. Return for
        each, in their order, whether it was taken, and the current bucket owner. Each bucket is in the list once."""
        ...

    async def adopt_bucket(
        self, bucket_owner: BucketOwner, *, despite_conflicts: bool = False
    ) -> tuple[bool, BucketOwner]:
        """`adopt_buckets` of one bucket."""
        ...

    async def return_bucket(self, bucket_owner: BucketOwner) -> BucketOwner | None:
        """Decline a bucket that the other store released to this one in exactly this version, even with open conflicts
        (see `declined_bucket`). Return the new bucket owner; None, with no change, if this store has adopted the bucket
        or has a later version."""
        ...


@dataclass(frozen=True, slots=True)
class FeedState:
    next_offsets: Mapping[int, int] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)
    """Mark of the last event that was read, by partition; "" if it is unknown."""
    applied: int = 0
    old: int = 0
    parked: int = 0
    journaled: int = 0
    parked_now: int = 0
    unauthenticated: int = 0
    """Parked events without a right code, those that are no longer kept included."""
    unauthenticated_now: int = 0
    """Part of `parked_now`."""
    checked_from: Mapping[int, int] = field(default_factory=dict)
    """Offset by partition from which on each event needs a right code; empty if none does."""

    @property
    def read(self) -> int:
        return self.applied + self.old + self.parked + self.journaled


class Feed(Protocol):
    """The store's position in the log, and its parked events."""

    async def state(self) -> FeedState: ...

    async def parked(self, limit: int, position: tuple[int, int] | None = None) -> list[Parked]:
        """Return parked events, oldest first; with `position`, only the one at this partition and offset."""
        ...

    async def parked_after(self, position: tuple[int, int], limit: int) -> list[Parked]:
        """Return parked events after this partition and offset, in the order of partition and offset."""
        ...

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        """Apply the record of a parked event and remove the event from the list."""
        ...

    async def drop(self, partition: int, offset: int) -> bool:
        """Remove a parked event from the list without applying it. Return False if there is none."""
        ...

    async def drop_unauthenticated(self) -> int:
        """Remove all unauthenticated events from the list. Return how many."""
        ...

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        """Move the feed to these offsets of another log, forward or back, and remove the marks. If events need a code,
        all events of that log do."""
        ...

    async def start_checking(self, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Record from which offsets on events need a right code, unless that is recorded. Return what is recorded."""
        ...

    async def stop_checking(self) -> None:
        """Remove the record of `start_checking`."""
        ...

    async def claim(self, partitions: int) -> Sequence[int]:
        """Return the partitions that this process applies now. One process at a time has a partition; a store with one
        process has all. The feed calls this repeatedly, because partitions move when processes start and end."""
        ...


class UnknownPosition(BatonError):
    """The position is not of this database, or so much has changed since that a whole view is less work."""


MOST_CHANGED = 10_000
"""Maximum number of keys in one answer of `Watch.since`."""


@dataclass(frozen=True, slots=True)
class Since:
    """The keys that were written after one position, up to another."""

    keys: tuple[str, ...]
    """Each key once, in no order."""
    position: str


class Watch(Protocol):
    """The records that are written, by their owner here or by apply. Handoffs are not writes; stubs are not records.

    A position is a text whose form is the adapter's own, small enough for a token. It outlives the process.
    """

    async def now(self) -> str:
        """Return a position. Every write that is invisible to a read begun after this call comes after the position."""
        ...

    async def since(self, position: str, wait_seconds: float) -> Since:
        """Return the keys of all records that were written after the position, as far as a read begun after this call
        sees the write. If there are none, wait for a first one.

        No key is left out, however late its write commits. Some keys may be returned again. Raises UnknownPosition,
        also if there are more than MOST_CHANGED keys.
        """
        ...


class Upkeep(Protocol):
    """Periodic work of a store, which one of its processes does."""

    async def tick(self, elapsed_seconds: float) -> None:
        """Advance the store's ticks by monotonic time that passed in this process. Does nothing in a process that does
        not hold the store's clock."""
        ...

    async def prune(self) -> int:
        """Remove served requests that are older than the retry window, in ticks. The work is bounded. Return how many
        were removed."""
        ...


class StorePorts(Protocol):
    """An open store: the ports above, over one database. The adapter's context manager closes it."""

    store: Store
    backend: str
    """Name and version of the database for the status: "sqlite 3.40", "postgresql 15"."""
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
        """Database connections in use now; 0 if the store has no pool."""
        ...

    @property
    def pools(self) -> Sequence[PoolState]:
        """The pools of database connections; none if the store needs none."""
        ...

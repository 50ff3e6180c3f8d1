"""One open transaction of a store's database: the operations that `libs.store.engine` is written over.

The engine holds the procedures of the protocol once, for every store. An adapter implements this port: it stores,
orders and fences, and decides nothing. It promises:

* All changes of a procedure commit together when the procedure returns. If it raises, all are rolled back.
* The fence is part of the statement that changes a row: `put` and `put_buckets` change a row only if its owner and
  version are still those that the decision was based on.
* An operation that locks holds the lock until the transaction ends. Locks are taken in one order: buckets before
  records, buckets by number, records by key. An operation begun after a lock was taken sees every change that was
  committed before the lock was granted.

The engine awaits these operations and nothing else. A store with one writer therefore runs a procedure to its end in
one step (`run_to_end`); a store with many writers awaits its driver inside the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import BucketOwner, Call, Found, Head, Row, Served, Store, Version
from libs.store.limits import Held, OutboxLimits
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedStep, Parked, Position
from libs.store.recovery import Conflict, Standing

T = TypeVar("T")


class StartAgain(BatonError):
    """The state that a decision was based on has changed: read and decide again."""

    code = "ABORTED"
    reason = "LOCK_TIMEOUT"


class Put(NamedTuple):
    """A row that replaces the one on which the decision was based."""

    row: Row
    before: Row | None
    """None if the store had no row of this key, not even a hidden one."""

    @property
    def keeps_payload(self) -> bool:
        """Whether only the envelope changes, so that every projection of the payload stays the same."""
        row, before = self
        return (
            before is not None
            and row.payload is before.payload
            and row.write_version == before.write_version
            and (row.live, row.schema_version) == (before.live, before.schema_version)
        )


class PutHead(NamedTuple):
    """A change of a row that keeps its payload."""

    head: Head
    before: Head


class Owned(NamedTuple):
    """A row that this store owns."""

    key: str
    size: int
    """Size of its payload."""


class PutBucket(NamedTuple):
    """A bucket that replaces the one on which the decision was based."""

    bucket: BucketOwner
    before: BucketOwner


class Counts(NamedTuple):
    """Events of one step of the feed, by their fate."""

    applied: int
    old: int
    parked: int
    journaled: int
    unauthenticated: int


class Transaction(Protocol):
    @property
    def store(self) -> Store: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def limits(self) -> OutboxLimits: ...

    # Records.

    async def find(self, call: Call) -> Found:
        """Return the call's record and the served requests with its request_id, of every principal, from one snapshot.
        Takes no lock, because `put` and `serve` are conditional."""
        ...

    async def found(self, keys: Sequence[str], *, create: bool, wait: bool) -> Mapping[str, Found]:
        """Return these records. Lock the rows that this store owns, and with `create` first lock the buckets, against
        every change of a bucket. Without `wait`, leave out the rows that another transaction has locked."""
        ...

    async def rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        """Return the rows of these keys, including hidden ones, and lock them."""
        ...

    async def rows_of_bucket(self, bucket: int) -> Sequence[Row]:
        """Return all rows of a bucket by key, including hidden ones, and lock them."""
        ...

    async def hidden(self, limit: int, bucket: int | None = None) -> Sequence[Row]:
        """Return rows of a lower term than their bucket, at most `limit`, of one bucket or of all, and lock them."""
        ...

    async def put(self, puts: Sequence[Put], *, own: bool) -> set[str]:
        """Store rows, each only if the row in the database has the owner and the version of `before`. Return the keys
        of rows that were not stored.

        A new row is stored only if its key has no row and its bucket is in the row's term. `own`: the change is this
        store's own (a write or a release). It then also requires that this store is not fenced and owns the row before
        the change, or for a new row its bucket.
        """
        ...

    async def owned(self, buckets: Sequence[int], after: str, limit: int) -> Sequence[Owned]:
        """Return the first rows of these buckets that this store owns, without hidden ones and without a lock: those
        after the key `after`, in the order of buckets and keys."""
        ...

    async def lock_owned(self, keys: Sequence[str]) -> Sequence[Row]:
        """Return and lock those of these rows that this store owns, except hidden ones and rows that another
        transaction has locked."""
        ...

    async def heads(self, keys: Sequence[str], *, lock: bool) -> Mapping[str, Head]:
        """Return the rows of these keys, including hidden ones, without payloads."""
        ...

    async def put_heads(self, puts: Sequence[PutHead], *, own: bool) -> set[str]:
        """Like `put`, for changes that keep the payload."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove rows that are in the journal. Only `settle` calls it."""
        ...

    # Served requests.

    async def served(
        self, effects: Sequence[tuple[str, Version]], *, answers: bool = True
    ) -> Sequence[tuple[str, Served]]:
        """Return served requests of the retry window, with their keys. For each key and version of `effects`: the
        requests whose version is of the same term and not higher, at least the newest SERVED_WINDOW of them. Without
        `answers`, each answer is None."""
        ...

    async def serve(self, key: str, served: Served, known: Served | None) -> bool:
        """Store a request that this store has served, in place of `known`. Return False if the database has another
        entry."""
        ...

    async def learn(self, learned: Sequence[tuple[str, Served]]) -> None:
        """Store requests that came with records; each request is in `learned` once. Of two entries the higher version
        stays."""
        ...

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all served requests of these records."""
        ...

    # Buckets.

    async def buckets(self, numbers: Sequence[int], *, shared: bool = False) -> Mapping[int, BucketOwner]:
        """Return these buckets, and lock them against every change and, unless `shared`, every new record."""
        ...

    async def put_buckets(self, puts: Sequence[PutBucket]) -> None:
        """Store buckets, each only if the one in the database equals `before`. Raises StartAgain."""
        ...

    # Outbox.

    async def depth(self) -> Depth:
        """Return the depth of the outbox without the additions of this transaction. It may be up to ten seconds old."""
        ...

    async def held(self) -> Held:
        """Return an upper bound of the store's contents. It may be HELD_SECONDS old."""
        ...

    async def enqueue(self, entries: Sequence[ChangeEntry]) -> None: ...

    # The feed.

    async def move(self, positions: Sequence[Position]) -> bool:
        """Move the feed. Return False if a partition is not at `before`. A partition that was never read is at 0."""
        ...

    async def park(self, parked: Sequence[Parked]) -> None:
        """Store these events. Each replaces another event of its partition and offset, but an unauthenticated event
        replaces only another unauthenticated one."""
        ...

    async def trim_unauthenticated(self, events: int, size: int) -> None:
        """Remove all parked unauthenticated events but the last ones: at most so many, with at most `size` bytes of
        values and headers. The last one always stays."""
        ...

    async def unpark(self, partition: int, offset: int) -> bool:
        """Remove a parked event. Return False if there is none."""
        ...

    async def count(self, step: FeedStep, counts: Counts) -> None:
        """Add to the feed's counters."""
        ...

    # Seizures.

    async def disputed(self, buckets: Sequence[int]) -> set[int]:
        """Return the given buckets that have an open conflict in the journal."""
        ...

    async def journal(self, conflicts: Sequence[Conflict]) -> None:
        """Add to the journal of conflicts, except changes that it has already."""
        ...

    async def fence_reason(self) -> str:
        """Return why the store is fenced; "" if it is not."""
        ...

    async def standing(self) -> Standing:
        """Return the standing, and lock it."""
        ...

    async def put_standing(self, standing: Standing) -> None:
        """Store `opened_at`, `fence_reason`, `other`, `order` and `fenced_at`."""
        ...

    async def count_rows(self) -> None:
        """Set the number of rows that each bucket should have to the number that it has (`Inspection.missing`)."""
        ...

    async def invalidate_positions(self) -> None:
        """Make every position that a watch may hold unknown (`Watch.since`)."""
        ...


Procedure = Callable[[Transaction], Coroutine[Any, Any, T]]
"""A procedure of the engine with its arguments."""


class Lane(Enum):
    """The kind of work that waits for a transaction. An adapter keeps the resources of each lane apart."""

    CALL = "call"
    """A client's call."""
    COPY = "copy"
    """A handoff or a copy between the stores."""
    BULK = "bulk"
    """A bulk release, which waits for clients' calls and adds to the outbox."""
    FEED = "feed"
    CONTROL = "control"


class Transactions(Protocol):
    async def run(self, procedure: Procedure[T], lane: Lane = Lane.CALL) -> T:
        """Run the procedure in one transaction and return its result after the commit.

        Runs it again after StartAgain, a bounded number of times (then LockTimeout). The procedure must not have side
        effects.
        """
        ...


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a procedure whose operations never wait.

    Raises RuntimeError if the procedure waits, or if the state that it had read has changed: a store with one writer
    allows neither.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    except StartAgain as error:
        raise RuntimeError(
            "a row changed inside the transaction that had read it: another writer is at work"
        ) from error
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits inside a transaction that must end in one step")

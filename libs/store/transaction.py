"""One open transaction of a store's database: the operations that `libs.store.engine` is written over.

The engine holds the procedures of the protocol once, for every store. An adapter implements this port: it stores,
orders and fences, and decides nothing. It promises:

* All changes of a procedure commit together when the procedure returns. If it raises, none of them stays.
* The fence is part of the statement that changes a row: `put` and `put_buckets` change a row only if its owner and
  version are still those that the decision was made on.
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
from libs.ownership.model import BucketOwner, Call, Found, Row, Served, Store, Version
from libs.store.limits import Held, OutboxLimits
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedStep, Parked, Position
from libs.store.recovery import Conflict, Standing

T = TypeVar("T")


class StartAgain(BatonError):
    """What a decision was made on has changed: read again, decide again."""

    code = "ABORTED"
    reason = "LOCK_TIMEOUT"


class Put(NamedTuple):
    """A row to store in place of the one that the decision was made on."""

    row: Row
    before: Row | None
    """None: the store had no row of this key, not even a hidden one."""

    @property
    def keeps_payload(self) -> bool:
        """Whether only the envelope changes, so that every projection of the payload stays as it is."""
        row, before = self
        return (
            before is not None
            and row.payload is before.payload
            and row.write_version == before.write_version
            and (row.live, row.schema_version) == (before.live, before.schema_version)
        )


class PutBucket(NamedTuple):
    """A bucket to store in place of the one that the decision was made on."""

    bucket: BucketOwner
    before: BucketOwner


class Counts(NamedTuple):
    """Events of one step of the feed, by their fate."""

    applied: int
    old: int
    parked: int
    journaled: int


class Transaction(Protocol):
    @property
    def store(self) -> Store:
        """This store."""
        ...

    @property
    def clock(self) -> Clock: ...

    @property
    def limits(self) -> OutboxLimits:
        """Of the outbox."""
        ...

    # Records.

    async def find(self, call: Call) -> Found:
        """The call's record and its served request. Takes no lock: `put` and `serve` are conditional."""
        ...

    async def found(self, keys: Sequence[str], *, create: bool, wait: bool) -> Mapping[str, Found]:
        """These records; locks the rows that this store owns, and with `create` first the buckets, against every
        change of a bucket. Without `wait`, leaves out the rows that another transaction holds."""
        ...

    async def rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        """The rows of these keys, hidden ones included; locks them."""
        ...

    async def rows_of_bucket(self, bucket: int) -> Sequence[Row]:
        """All rows of a bucket by key, hidden ones included; locks them."""
        ...

    async def hidden(self, limit: int, bucket: int | None = None) -> Sequence[Row]:
        """Rows of a lower term than their bucket, at most `limit`, of one bucket or of all; locks them."""
        ...

    async def put(self, puts: Sequence[Put], *, own: bool) -> set[str]:
        """Store rows, each only if the row in the database has the owner and the version of `before`.

        A new row is stored only if there is none of its key and its bucket is in the row's term. `own`: the change is
        this store's own (a write or a release), so additionally this store is not fenced and owns the row before, or
        for a new row its bucket. Returns the keys of rows that were not stored.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove rows that are in the journal. Called by `settle` alone."""
        ...

    # Served requests.

    async def served(self, effects: Sequence[tuple[str, Version]]) -> Sequence[tuple[str, Served]]:
        """Served requests of the retry window, by key, for each key and version: those whose version is of the same
        term and not higher, at least the newest SERVED_WINDOW of them."""
        ...

    async def serve(self, key: str, served: Served, known: Served | None) -> bool:
        """Store a request that this store has served, in place of `known`. False: the database has another entry."""
        ...

    async def learn(self, learned: Sequence[tuple[str, Served]]) -> None:
        """Store requests that came with records, each request once. Of two entries the higher version stays."""
        ...

    async def forget(self, keys: Sequence[str]) -> None:
        """Remove all served requests of these records."""
        ...

    # Buckets.

    async def buckets(self, numbers: Sequence[int]) -> Mapping[int, BucketOwner]:
        """These buckets; locks them against every change and every new record."""
        ...

    async def put_buckets(self, puts: Sequence[PutBucket]) -> None:
        """Store buckets, each only if the database has it as in `before`. Raises StartAgain."""
        ...

    # Outbox.

    async def depth(self) -> Depth:
        """The outbox without what this transaction adds; may be up to ten seconds old."""
        ...

    async def held(self) -> Held:
        """At least as much as the store holds; may be HELD_SECONDS old."""
        ...

    async def enqueue(self, entries: Sequence[ChangeEntry]) -> None: ...

    # The feed.

    async def move(self, positions: Sequence[Position]) -> bool:
        """Move the feed. False: a partition is not at `before`; a partition that was never read is at 0."""
        ...

    async def park(self, parked: Sequence[Parked]) -> None:
        """Keep these events, each in place of another one of its partition and offset."""
        ...

    async def unpark(self, partition: int, offset: int) -> bool:
        """Remove a parked event. False: there is none."""
        ...

    async def count(self, step: FeedStep, counts: Counts) -> None:
        """Add to the feed's counters."""
        ...

    # Seizures.

    async def disputed(self, bucket: int) -> bool:
        """Whether the journal has an open conflict of the bucket."""
        ...

    async def journal(self, conflicts: Sequence[Conflict]) -> None:
        """Add to the journal of conflicts, except what is in it already."""
        ...

    async def fence_reason(self) -> str:
        """Why the store is fenced; "" if it is not."""
        ...

    async def standing(self) -> Standing:
        """Locks it."""
        ...

    async def put_standing(self, standing: Standing) -> None:
        """Store `opened_at`, `gone`, `other`, `order` and `fenced_at`."""
        ...

    async def count_rows(self) -> None:
        """Take the rows that each bucket has now for all that it should have (`Inspection.missing`)."""
        ...

    async def invalidate_positions(self) -> None:
        """Make every place that a watch may hold unknown (`Watch.since`)."""
        ...


Procedure = Callable[[Transaction], Coroutine[Any, Any, T]]
"""A procedure of the engine with its arguments."""


class Lane(Enum):
    """Who waits for a transaction. An adapter keeps resources apart by it."""

    CALL = "call"
    """A client."""
    COPY = "copy"
    """A handoff or a copy between the stores."""
    FEED = "feed"
    CONTROL = "control"


class Transactions(Protocol):
    async def run(self, procedure: Procedure[T], lane: Lane = Lane.CALL) -> T:
        """Run the procedure in one transaction and return its result after the commit.

        Runs it again after StartAgain, a bounded number of times (then LockTimeout). The procedure must not have
        effects of its own.
        """
        ...


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a procedure whose operations never wait.

    Raises RuntimeError if it waits, or if what it had read has changed: a store with one writer allows neither.
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

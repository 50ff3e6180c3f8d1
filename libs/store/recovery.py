"""Ports through which the loss of a store is detected and repaired.

The rules are in `libs.ownership.terms`. The promises of `libs.store.port` apply here too. In all ports, rows of a lower
term than their bucket are hidden: reads, lists, copies and releases treat them as absent. Apply sees them. A record
that apply does not store because of its term goes to the journal of conflicts and counts as journaled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from libs.errors import BatonError
from libs.ownership.model import BucketOwner, Version
from libs.ownership.orders import Order


class StillHidden(BatonError):
    """The store still has rows of an older term, so it cannot open: settle them first."""

    code = "FAILED_PRECONDITION"
    reason = "STORE_NOT_READY"


class FencedAnew(BatonError):
    """The store was fenced again, or opened, since its standing was read: nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECOVERY_OVER"


class DatabaseReplaced(BatonError):
    """The database is not the one that this process started on: restart the process, and it reports the remedy."""

    code = "UNAVAILABLE"
    reason = "STORE_NOT_READY"
    retry_seconds = 5.0


class Identity(NamedTuple):
    """The database of a store, and the number of its changes."""

    database: str
    """Id of the database. It changes if the database is recreated, restored elsewhere or promoted."""
    changes: int
    """Grows with the database's own changes. It falls only if the database is restored."""


@dataclass(frozen=True, slots=True)
class FencedAt:
    """The state of a store when admission fenced it. The store continues from there, so evidence is compared with this
    state."""

    changes: int
    """Changes of this database. Processes that were admitted before the fence, and served until they saw it, raise the
    number."""
    next_offsets: Mapping[int, int]
    """Next offset before the evidence was read, by partition of the log."""

    def encode(self) -> str:
        return json.dumps({"changes": self.changes, "next_offsets": {str(k): v for k, v in self.next_offsets.items()}})

    @classmethod
    def decode(cls, text: str) -> FencedAt | None:
        if not text:
            return None
        found = json.loads(text)
        return cls(found["changes"], {int(part): offset for part, offset in found["next_offsets"].items()})


@dataclass(frozen=True, slots=True)
class Standing:
    """A database's own record of its identity, its fence and its recovery."""

    now: Identity
    opened_at: str
    """Id of the database in which the store was made, or opened after a recovery. A backup carries it to another
    database."""
    fence_reason: str
    """Why this store must not serve until it is recovered; "" if it may serve."""
    other: Identity | None
    """The other store's database, as last reported to this store."""
    conflicts: int
    """Entries of the journal that no person has resolved."""
    order: Order | None = None
    """The highest order of a recovery that this store has taken."""
    fenced_at: FencedAt | None = None
    """The state when admission fenced the store; None if something else fenced it, or a recovery has begun since."""

    def check_fence(self, fence_reason: str, *, by_admission: bool) -> None:
        """Check that the current fence is the one that the caller has seen. Raises FencedAnew."""
        if (fence_reason, by_admission) != (self.fence_reason, self.fenced_at is not None):
            raise FencedAnew(
                f"{FencedAnew.__doc__} It was fenced: {self.fence_reason}; now: {fence_reason or 'it is open'}"
            )


class Why(StrEnum):
    """The reason why a record is in the journal of conflicts."""

    LATE = "late"
    """The change arrived after the seizure, and the seizer had not seen it."""
    REPLACED = "replaced"
    """The row was stored when the seizer's row arrived, and the seizer had not seen it."""
    LEFT = "left"
    """The row was stored, and the seizer has no such record."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A change that a seizure did not include. It is never dropped and never applied: a person reviews and resolves
    it."""

    key: str
    version: Version
    why: Why
    event: bytes = field(repr=False)
    """The serialized Record."""
    resolution: str = ""
    """The person's decision; "" if the conflict is open."""


class Recovery(Protocol):
    """Whether this store may serve. All methods work on a fenced store too."""

    async def standing(self) -> Standing: ...

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        """Fence the store, for all its processes and across their restarts. The first reason stays.

        `order`: stored in the same transaction; raises LateOrder, ForeignControl, with nothing changed. `since`: the
        feed's offsets before admission read its evidence; stored together with the store's own changes as FencedAt.
        """
        ...

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        """Lift the fence, and make the current database the store's own. `order`: as in `fence`. `seen`: the standing
        whose fence the caller lifts; another fence stays. Raises StillHidden, FencedAnew, with nothing changed."""
        ...

    async def take_order(self, order: Order) -> None:
        """Store the order. Raises LateOrder, ForeignControl, with nothing changed."""
        ...

    async def vouch(self, changes: int) -> None:
        """Increase the changes in FencedAt to this number. A process that was admitted before the fence has seen the
        store at that number of changes."""
        ...

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        """Store the other store's identity, if its database is the known one and it has more changes. `anew`: store it
        in any case."""
        ...

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        """Move the feed forward to these offsets of the log. A partition that is already beyond its offset stays."""
        ...


class Seizures(Protocol):
    """Seizures, and the journal of the conflicts that they leave."""

    async def seize(self, bucket: int, term: int) -> BucketOwner:
        """In one transaction, bring the bucket and all its rows into this term, make this store their owner, and make
        an event for each row.

        Does nothing if the bucket has the term already. May use the outbox's reserve. Waits for changes in the bucket
        that are under way. Raises SeizureRefused, OutboxFull. Return the current bucket owner.
        """
        ...

    async def take_terms(self, bucket_owners: Sequence[BucketOwner]) -> None:
        """Take each of the other store's bucket owners that is higher by term and version, whichever store it names.
        Only a fenced store may call it, since its own bucket owners do not count."""
        ...

    async def settle(self, limit: int) -> int:
        """Move hidden rows to the journal, at most `limit`, when all rows of the seizer are here. Return how many
        moved."""
        ...

    async def conflicts(self, limit: int) -> list[Conflict]:
        """Return open conflicts, then resolved ones, each in the order of their arrival."""
        ...

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        """Return those of these buckets, or of all, that have an open conflict in the journal."""
        ...

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        """Resolve a conflict. Return whether it existed and was open. A bucket with an open conflict is neither
        released nor adopted."""
        ...

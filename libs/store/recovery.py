"""What a store's database must do so that its loss can be recognised and made good: two ports more.

The rules are in `libs.ownership.terms`. What `libs.store.port` promises of adapters holds here too. In all ports rows
of a lower term than their bucket are hidden: reads, lists, copies and releases take them for not there. Apply sees
them, and what it does not apply because of its term goes to the journal of conflicts, counted as journaled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from libs.errors import BatonError
from libs.ownership.model import BucketOwner, Version
from libs.ownership.orders import Order


class StillHidden(BatonError):
    """Rows of an older term are here still, so the store cannot open: they are to be settled first."""

    code = "FAILED_PRECONDITION"
    reason = "STORE_NOT_READY"


class FencedAnew(BatonError):
    """The store was fenced again, or opened, since it was looked at: nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECOVERY_OVER"


class DatabaseReplaced(BatonError):
    """The database is not the one that this process was started on: start it again, it will say what to do."""

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
    """Where a store stood when admission fenced it. It goes on from there, so evidence is compared with this."""

    changes: int
    """Of this database; raised by processes that were admitted before, and served until they saw the fence."""
    next_offsets: Mapping[int, int]
    """By partition of the log, before the evidence was read."""

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
    """What a database says of itself."""

    now: Identity
    opened_at: str
    """The place where it stood when it was made, or opened after a recovery: a backup carries it elsewhere."""
    fence_reason: str
    """Why this store must not serve until it is recovered; "" when it may."""
    other: Identity | None
    """What this store was last told of the other one."""
    conflicts: int
    """Entries of the journal that no person has resolved."""
    order: Order | None = None
    """The highest order of a recovery that this store has taken."""
    fenced_at: FencedAt | None = None
    """Where the store stood when admission fenced it; None: something else has, or a recovery has begun since."""

    def check_fence(self, fence_reason: str, *, by_admission: bool) -> None:
        """Check that the current fence is the one that the caller has seen. Raises FencedAnew."""
        if (fence_reason, by_admission) != (self.fence_reason, self.fenced_at is not None):
            raise FencedAnew(
                f"{FencedAnew.__doc__} It was fenced: {self.fence_reason}; now: {fence_reason or 'it is open'}"
            )


class Why(StrEnum):
    """How a record came into the journal of conflicts."""

    LATE = "late"
    """It arrived after the seizure, and the seizer had not seen it."""
    REPLACED = "replaced"
    """It stood here when the seizer's row came, and the seizer had not seen it."""
    LEFT = "left"
    """It stood here, and the seizer has no such record."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A change that a seizure has left behind. Never dropped, never applied: a person looks at it and resolves it."""

    key: str
    version: Version
    why: Why
    event: bytes
    """The serialized Record."""
    resolution: str = ""
    """What a person has said of it; "": nothing yet."""


class Recovery(Protocol):
    """Whether this store may serve. Works on a gone store too."""

    async def standing(self) -> Standing: ...

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        """Marks the store as gone, for all its processes and starts. The first reason stays.

        `order`: taken in the same transaction; raises LateOrder, ForeignControl, with nothing changed. `since`: the
        feed's position before admission read its evidence; kept with the store's own as FencedAt.
        """
        ...

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        """Not gone any more, and at home where it is now. `order` as for `fence`. `seen`: the fence that was looked at;
        another one stays. Raises StillHidden, FencedAnew, with nothing changed."""
        ...

    async def take_order(self, order: Order) -> None:
        """Keeps the order. Raises LateOrder, ForeignControl, with nothing changed."""
        ...

    async def vouch(self, changes: int) -> None:
        """A process that was admitted before the fence has seen this store at so many changes: raises FencedAt."""
        ...

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        """Remembers how far the other store has come: what is higher at the same place. `anew`: whatever was known."""
        ...

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        """Moves the feed forward to these offsets of the log, where it is not beyond them."""
        ...


class Seizures(Protocol):
    """Terms, and what they leave behind."""

    async def seize(self, bucket: int, term: int) -> BucketOwner:
        """Bucket and every row of it in this term, and owned here, each with its event: one transaction. Nothing when
        the bucket has the term already. May use the outbox's reserve, and waits for changes in the bucket that are
        under way. Raises SeizureRefused, OutboxFull. Returns what stands here now."""
        ...

    async def take_terms(self, bucket_owners: Sequence[BucketOwner]) -> None:
        """Take each of the other store's bucket owners that is higher by term and version, whichever store it names.
        Only a fenced store does so: its own bucket owners do not count."""
        ...

    async def settle(self, limit: int) -> int:
        """Moves hidden rows to the journal, at most `limit`; for when all rows of the seizer are here. Returns how
        many."""
        ...

    async def conflicts(self, limit: int) -> list[Conflict]:
        """Unresolved ones first, then those that were resolved, each in the order in which they came."""
        ...

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        """Which of these buckets, or of all, have an open conflict in the journal."""
        ...

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        """Return whether there was such an unresolved entry. A bucket that has one is neither released nor adopted."""
        ...

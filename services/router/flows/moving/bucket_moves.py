"""Handoff of bucket ownership: the right to create records in a bucket.

Only the bucket's owner may create a record; otherwise both stores could create the same name. A handoff has five steps:

1. Ask the target for open conflicts. A bucket that the target would not adopt does not move.
2. Copy the records that the target lacks, so that the next steps are short.
3. The source releases the bucket. After this commit it creates no record in the bucket.
4. List the source's keys, and copy the few that the target still lacks. Now every record of the bucket exists at the
   target.
5. The target adopts exactly the released version. It refuses a late adopt of an older one.

Between steps 3 and 5 no store creates records in the bucket; any router that sees this state finishes the handoff. If a
conflict has appeared since step 1, the target declines: it writes the next version with the releaser as the owner. The
releaser adopts that version by steps 4 and 5, even if its own journal has open conflicts, so a bucket always gets an
owner. Only the target may undo a release: if the releaser took the bucket back, the target could adopt it at the same
time.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS, store_from_pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.flows.moving.transfer import Transfer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Move:
    """The result of moving some buckets."""

    arrived: int = 0
    """Buckets that a store has adopted."""
    kept: dict[int, str] = field(default_factory=dict)
    """Buckets that did not leave their source, or returned to it, each with the reason."""

    def add(self, other: Move) -> None:
        """Add the result for other buckets."""
        self.arrived += other.arrived
        self.kept.update(other.kept)


class BucketMoves:
    """Raises Away and Refused, as the stores' clients do."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def move(self, buckets: Sequence[int], to: Store, level: Set[int] = frozenset()) -> Move:
        """Move buckets that the other store owns.

        `level`: buckets whose rows seem to be the same at both stores. Step 2 leaves them out; step 4 lists them.
        """
        kept = {bucket: _conflicts_at(to) for bucket in await self._transfer.disputed(to, buckets)}
        known: set[str] = set()
        uneven = [one for one in buckets if one not in kept and one not in level]
        if ahead := await self._transfer.keys(to.other, uneven):
            known.update(await self._transfer.keys(to, uneven))
            copied = await self._transfer.copy([key for key in ahead if key not in known], to)
            kept.update({bucket_of(key): reason for key, reason in copied.refused.items()})
            # A busy record may be missing at the target.
            known.update(set(ahead).difference(copied.busy, copied.refused))
        leaving = [bucket for bucket in buckets if bucket not in kept]
        moved = Move(kept=kept)
        if leaving:
            released = await self._transfer.release_buckets(leaving, to)
            under_way = [one for one in released if one.owner == STORE_NUMBERS[to]]
            kept.update({one.bucket: _conflicts_at(to.other) for one in released if one not in under_way})
            await self._finish(under_way, to, moved, known)
        return moved

    async def finish(self, buckets: Sequence[int]) -> Move:
        """Complete handoffs that any router has begun. Buckets with an owner are not touched."""
        move = Move()
        for to, bucket_owners in (await self._under_way(buckets)).items():
            await self._finish(bucket_owners, to, move)
        return move

    async def _finish(
        self,
        bucket_owners: Sequence[record_pb2.BucketOwner],
        to: Store,
        move: Move,
        known: Set[str] = frozenset(),
    ) -> None:
        """Let the target adopt released buckets, or give them back. Adds to `move`.

        `known`: records known to exist at the target. They stay valid, since a store never loses a row.
        """
        refused = await self._complete(bucket_owners, to, move, known)
        if not refused:
            return
        wanted = [one for one in bucket_owners if one.bucket in refused]
        declined = await self._transfer.return_buckets(wanted, to)
        for one in declined:
            move.kept[one.bucket] = refused[one.bucket]
            log.warning("bucket %d returns to store %s: %s", one.bucket, to.other, refused[one.bucket])
        # The same steps as after any release: the releaser may itself have declined before.
        await self._complete(declined, to.other, Move(), despite_conflicts=True)

    async def _complete(
        self,
        bucket_owners: Sequence[record_pb2.BucketOwner],
        to: Store,
        move: Move,
        has: Set[str] = frozenset(),
        *,
        despite_conflicts: bool = False,
    ) -> Mapping[int, str]:
        """Do steps 4 and 5. Returns the buckets that the target cannot adopt, each with the reason.

        Other buckets that are not adopted have busy records, and their handoff stays under way.
        """
        if not bucket_owners:
            return {}
        numbers = [bucket_owner.bucket for bucket_owner in bucket_owners]
        # List the source after its release has committed (step 4). The target's list may be older.
        there = await self._transfer.keys(to.other, numbers)
        unsure = {bucket_of(key) for key in there if key not in has} if has else set(numbers)
        if there and unsure:
            has = {*has, *await self._transfer.keys(to, sorted(unsure))}
        copied = await self._transfer.copy([key for key in there if key not in has], to)
        busy = {bucket_of(key) for key in copied.busy}
        refused = {bucket_of(key): reason for key, reason in copied.refused.items()}
        ready = [one for one in bucket_owners if one.bucket not in busy and one.bucket not in refused]
        standing = await self._transfer.adopt_buckets(ready, to, despite_conflicts=despite_conflicts)
        for wanted, now in zip(ready, standing, strict=True):
            if (now.term, now.version) < (wanted.term, wanted.version):
                refused[wanted.bucket] = _conflicts_at(to)
            else:
                move.arrived += 1
        return refused

    async def _under_way(self, buckets: Sequence[int]) -> dict[Store, list[record_pb2.BucketOwner]]:
        """Return the buckets that were released and not adopted, by target."""
        found: defaultdict[Store, list[record_pb2.BucketOwner]] = defaultdict(list)
        a, b = [await self._transfer.bucket_owners(store, buckets) for store in Store]
        for at_a, at_b in zip(a, b, strict=True):
            if at_a.owner == STORE_NUMBERS[Store.A] or at_b.owner == STORE_NUMBERS[Store.B]:
                continue
            released = max(at_a, at_b, key=lambda bucket_owner: (bucket_owner.term, bucket_owner.version))
            found[store_from_pb(released.owner, "owner")].append(released)
        return found


def _conflicts_at(store: Store) -> str:
    return f"store {store} has open conflicts in it: review and resolve them (baton conflicts)"

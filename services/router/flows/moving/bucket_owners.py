"""Handing over the right to create records, by buckets.

A record that does not exist has an owner too, else two stores could create one name. The order makes it safe:

1. The target is asked for open conflicts: a bucket that it would not adopt stays where it is.
2. What the target lacks is copied ahead, so that the next steps are short.
3. The source releases the absence. From the moment this has committed it creates nothing in the bucket.
4. The source's keys are listed, after that, and the few that the target still lacks are copied. So every record of the
   bucket exists at the target.
5. The target adopts exactly the version that was released; a late adopt of an older one is refused.

Between 3 and 5 no store creates in the bucket; a router that meets this finishes the move. If the target refuses to
adopt, because a conflict has come since step 1, it declines: it writes the next version with the releaser as the owner.
The releaser adopts that version, by steps 4 and 5 and whatever its own journal says: so a bucket always has an owner in
the end. Only the target may undo a release: a releaser that took the bucket back by itself could do so while the target
adopts it.
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


@dataclass(frozen=True, slots=True)
class Listed:
    """The records of some buckets at their source, listed after the source had released the buckets."""

    buckets: Set[int]
    owned: Sequence[str]
    """Keys of the records in them that the source owned then. It makes no new ones there."""


@dataclass(slots=True)
class Move:
    """The result of moving some buckets."""

    listed: dict[Store, Listed] = field(default_factory=dict)
    """By target."""
    arrived: int = 0
    """Buckets that a store has adopted."""
    kept: dict[int, str] = field(default_factory=dict)
    """Buckets that are with their source, or are back there, each with the reason."""

    def add(self, other: Move) -> None:
        """Of other buckets."""
        self.arrived += other.arrived
        self.kept.update(other.kept)


class Absences:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def move(self, buckets: Sequence[int], to: Store) -> Move:
        """Moves buckets that the other store owns."""
        kept = {bucket: _conflicts_at(to) for bucket in await self._transfer.disputed(to, buckets)}
        known: set[str] = set()
        if ahead := await self._transfer.keys(to.other, [one for one in buckets if one not in kept]):
            known.update(await self._transfer.keys(to, buckets))
            copied = await self._transfer.copy([key for key in ahead if key not in known], to)
            kept.update({bucket_of(key): reason for key, reason in copied.refused.items()})
            # A record that was busy may not have arrived.
            known.update(set(ahead).difference(copied.busy, copied.refused))
        leaving = [bucket for bucket in buckets if bucket not in kept]
        if not leaving:
            return Move(kept=kept)
        for absence in await self._transfer.release_absences(leaving, to):
            if absence.owner == STORE_NUMBERS[to.other]:
                kept[absence.bucket] = _conflicts_at(to.other)
        moved = await self.finish(leaving, {to: known})
        moved.kept.update(kept)
        return moved

    async def finish(self, buckets: Sequence[int], known: Mapping[Store, Set[str]] | None = None) -> Move:
        """Completes moves that have begun, whichever router began them; leaves buckets alone that a store owns.

        `known`: records that a target surely has: it had them before, and a store never loses a row.
        """
        move = Move()
        for to, absences in (await self._under_way(buckets)).items():
            refused = await self._complete(absences, to, move, (known or {}).get(to))
            if not refused:
                continue
            wanted = [one for one in absences if one.bucket in refused]
            declined = await self._transfer.return_absences(wanted, to)
            for one in declined:
                move.kept[one.bucket] = refused[one.bucket]
                log.warning("bucket %d goes back to store %s: %s", one.bucket, to.other, refused[one.bucket])
            # As after any release: the releaser may have been the one that declined before.
            await self._complete(declined, to.other, Move(), despite_conflicts=True)
        return move

    async def _complete(
        self,
        absences: Sequence[record_pb2.Absence],
        to: Store,
        move: Move,
        has: Set[str] | None = None,
        *,
        despite_conflicts: bool = False,
    ) -> Mapping[int, str]:
        """Steps 4 and 5. Returns the buckets that cannot arrive at the target, each with the reason. Others that are
        not adopted have records that were busy: they stay under way."""
        if not absences:
            return {}
        numbers = [absence.bucket for absence in absences]
        # Listed after the release has committed: see step 4. What is known of the target may be older.
        there = await self._transfer.envelopes(to.other, numbers)
        owned = [record.key for record in there if record.owner == STORE_NUMBERS[to.other]]
        move.listed[to] = Listed(frozenset(numbers), owned)
        if has is None:
            has = set(await self._transfer.keys(to, numbers)) if there else set()
        copied = await self._transfer.copy([record.key for record in there if record.key not in has], to)
        busy = {bucket_of(key) for key in copied.busy}
        refused = {bucket_of(key): reason for key, reason in copied.refused.items()}
        ready = [one for one in absences if one.bucket not in busy and one.bucket not in refused]
        standing = await self._transfer.adopt_absences(ready, to, despite_conflicts=despite_conflicts)
        for wanted, now in zip(ready, standing, strict=True):
            if (now.term, now.version) < (wanted.term, wanted.version):
                refused[wanted.bucket] = _conflicts_at(to)
            else:
                move.arrived += 1
        return refused

    async def _under_way(self, buckets: Sequence[int]) -> dict[Store, list[record_pb2.Absence]]:
        """Buckets that were released and not adopted, by the store to which they were released."""
        found: defaultdict[Store, list[record_pb2.Absence]] = defaultdict(list)
        a, b = [await self._transfer.absences(store, buckets) for store in Store]
        for at_a, at_b in zip(a, b, strict=True):
            if at_a.owner == STORE_NUMBERS[Store.A] or at_b.owner == STORE_NUMBERS[Store.B]:
                continue
            released = max(at_a, at_b, key=lambda absence: (absence.term, absence.version))
            found[store_from_pb(released.owner, "owner")].append(released)
        return found


def _conflicts_at(store: Store) -> str:
    return f"store {store} has open conflicts in it: look at them and resolve them (baton conflicts)"

"""Handing over the right to create records, by buckets.

A record that does not exist has an owner too, else two stores could create one name. The order makes it safe:

1. What the target lacks is copied ahead, so that the next steps are short.
2. The source releases the absence. From the moment this has committed it creates nothing in the bucket.
3. The source's keys are listed, after that, and the few that the target still lacks are copied. So every record of the
   bucket exists at the target.
4. The target adopts exactly the version that was released; a late adopt of an older one is refused.

Between 2 and 4 nobody creates in the bucket; whoever meets that finishes the move. It is never cancelled, only finished
and moved back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS, store_from_pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.flows.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Listed:
    """What a source said after it had given the absences of some buckets up."""

    buckets: Set[int]
    owned: Sequence[str]
    """Keys of the records in them that the source owned then. It makes no new ones there."""


class Absences:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def move(self, buckets: Sequence[int], to: Store) -> Mapping[Store, Listed]:
        """Of buckets that the other store owns. Returns what `finish` does."""
        known: set[str] = set()
        if ahead := await self._transfer.keys(to.other, buckets):
            known.update(await self._transfer.keys(to, buckets))
            missing = [key for key in ahead if key not in known]
            if await self._transfer.copy(missing, to):
                known.update(missing)
        await self._transfer.release_absences(buckets, to)
        return await self.finish(buckets, {to: known})

    async def finish(
        self, buckets: Sequence[int], known: Mapping[Store, Set[str]] | None = None
    ) -> Mapping[Store, Listed]:
        """Completes moves that have begun, whoever began them; leaves buckets alone that a store owns.

        `known`: records that a target surely has: it had them before, and a store never loses a row. Returns by target
        what the source of its buckets listed.
        """
        found: dict[Store, Listed] = {}
        for to, absences in (await self._under_way(buckets)).items():
            numbers = [absence.bucket for absence in absences]
            # Listed after the release has committed: see step 3. What is known of the target may be older.
            there = await self._transfer.envelopes(to.other, numbers)
            owned = [record.key for record in there if record.owner == STORE_NUMBERS[to.other]]
            found[to] = Listed(frozenset(numbers), owned)
            has = (known or {}).get(to)
            if has is None:
                has = set(await self._transfer.keys(to, numbers)) if there else set()
            if await self._transfer.copy([record.key for record in there if record.key not in has], to):
                await self._transfer.adopt_absences(absences, to)
        return found

    async def _under_way(self, buckets: Sequence[int]) -> dict[Store, list[record_pb2.Absence]]:
        """What was released and not adopted, by whom it was released to."""
        found: dict[Store, list[record_pb2.Absence]] = {}
        a, b = [await self._transfer.absences(store, buckets) for store in Store]
        for at_a, at_b in zip(a, b, strict=True):
            if at_a.owner == STORE_NUMBERS[Store.A] or at_b.owner == STORE_NUMBERS[Store.B]:
                continue
            released = max(at_a, at_b, key=lambda absence: (absence.term, absence.version))
            found.setdefault(store_from_pb(released.owner, "owner"), []).append(released)
        return found

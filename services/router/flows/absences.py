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

from collections.abc import Sequence

from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS, store_from_pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.flows.transfer import Transfer


class Absences:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    async def move(self, buckets: Sequence[int], to: Store) -> None:
        """Of buckets that the other store owns."""
        await self._copy_missing(buckets, to)
        await self._transfer.release_absences(buckets, to)
        await self.finish(buckets)

    async def finish(self, buckets: Sequence[int]) -> None:
        """Completes moves that have begun, whoever began them; leaves buckets alone that a store owns."""
        under_way = await self._under_way(buckets)
        for to, absences in under_way.items():
            # Listed after the release has committed: see step 3.
            if await self._copy_missing([absence.bucket for absence in absences], to):
                await self._transfer.adopt_absences(absences, to)

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

    async def _copy_missing(self, buckets: Sequence[int], to: Store) -> bool:
        """Whether the target has every record of the source now."""
        keys = await self._transfer.keys(to.other, buckets)
        if not keys:
            return True
        known = set(await self._transfer.keys(to, buckets))
        return await self._transfer.copy([key for key in keys if key not in known], to)

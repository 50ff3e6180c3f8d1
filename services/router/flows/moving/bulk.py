"""Moves of many records at once: the source releases up to 1000 in one transaction, the target takes them in one.

Neither step carries payloads, because the target has the records already. A record that the target cannot take, for
example because its last write has not arrived yet, is released again alone, which returns it whole.

A bulk release cannot be repeated: the source does not own these records any more. So if its answer is lost, or
this router ends here, the event of the release brings the records home, and if the target could not take them then,
`Strays` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NamedTuple

import grpc

from libs.clock import Clock
from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS, read_bulk, store_from_pb, version_from_pb
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.moving.transfer import BULK_SECONDS, Transfer
from services.router.flows.stores import Refused, Stores

log = logging.getLogger(__name__)

STEPS = 2
"""Steps under way at once: while one store releases, the other one takes. More would only make clients wait."""

STRAY_SECONDS = 10.0
"""Time for which a bucket must have records without an owner before they are looked for."""

STRAY_BUCKETS = 32
"""Buckets that are searched in one pass."""

SEARCHED_AT_ONCE = 500
"""Records that are compared in one step of the event loop."""


class Step(NamedTuple):
    """One step of a bulk move."""

    moved: int
    failed: int
    """Records that were released and have not arrived."""


class BulkMoves:
    """Raises Away and Refused, as the stores' clients do."""

    def __init__(self, stores: Stores, transfer: Transfer) -> None:
        self._stores = stores
        self._transfer = transfer
        self._steps = asyncio.Semaphore(STEPS)

    async def is_known(self) -> bool:
        """Whether both stores support bulk releases. A process of an earlier release would park their events."""
        for client in self._stores.values():
            status = await client.ask(client.replication.GetStatus, pb.GetStatusRequest(), BULK_SECONDS)
            if not status.adopts_bulk:
                return False
        return True

    async def move(self, buckets: Sequence[int], to: Store) -> AsyncGenerator[Step, None]:
        """Move the records of these buckets that the other store owns, step by step. Records that are busy or cannot
        leave stay."""
        source, numbers, after = self._stores[to.other], sorted(buckets), ""
        while True:
            request = pb.ReleaseBulkRequest(buckets=numbers, to=STORE_NUMBERS[to], after=after)
            async with self._steps:
                try:
                    answer = await source.ask(source.replication.ReleaseBulk, request, BULK_SECONDS)
                except Refused as refused:
                    if refused.error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        return
                    raise
                failed = await self._adopt(answer.event, to) if answer.event else 0
            yield Step(answer.released - failed, failed)
            after = answer.last
            if not after or answer.full:
                return

    async def _adopt(self, event: bytes, to: Store) -> int:
        """Return how many of the released records have not arrived."""
        target = self._stores[to]
        try:
            answer = await target.ask(target.replication.AdoptBulk, pb.AdoptBulkRequest(event=event), BULK_SECONDS)
            missing = list(answer.missing)
        except Refused as refused:
            if not refused.is_fault and refused.error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            # If the target has taken a record, it ignores the whole release of that record.
            bulk = read_bulk("", event)
            missing = [one.key for one in bulk.entries] if bulk is not None else []
        return len(await self._transfer.take(missing, to)) if missing else 0


class Strays:
    """Finds records that no store owns: they were released, and did not arrive.

    Each record is owned by one store or is on its way, so if the stores together own fewer records of a bucket than
    one of them has, some are on their way. That is usual for a moment; a bucket with such records for STRAY_SECONDS is
    searched.
    """

    def __init__(self, transfer: Transfer, clock: Clock) -> None:
        self._transfer = transfer
        self._clock = clock
        self._since: dict[int, float] = {}
        """Time at which a bucket was first seen with records on their way, and at each look since, by bucket."""
        self.due: Sequence[int] = ()
        """Buckets with records on their way for STRAY_SECONDS."""

    def look(self, on_their_way: Mapping[int, int]) -> None:
        """`on_their_way`: number of such records by bucket."""
        now = self._clock.monotonic()
        self._since = {bucket: self._since.get(bucket, now) for bucket, count in on_their_way.items() if count > 0}
        self.due = [bucket for bucket, since in self._since.items() if now - since >= STRAY_SECONDS]

    async def bring_home(self) -> int:
        """Let the due records arrive. Return how many were on their way."""
        buckets = sorted(self.due)[:STRAY_BUCKETS]
        if not buckets:
            return 0
        going: dict[Store, list[str]] = {store: [] for store in Store}
        for bucket in buckets:
            await self._search(bucket, going)
        for to, keys in going.items():
            if keys:
                log.warning("%d records on their way to store %s are brought home: %s first", len(keys), to, keys[0])
                await self._transfer.take(sorted(keys), to)
        for bucket in buckets:
            self._since.pop(bucket, None)
        self.due = [bucket for bucket in self.due if bucket in self._since]
        return sum(map(len, going.values()))

    async def _search(self, bucket: int, going: Mapping[Store, list[str]]) -> None:
        """Add the bucket's records that are on their way, by the store that they were released to."""
        rows = [{one.key: one for one in await self._transfer.envelopes(store, [bucket])} for store in Store]
        for number, key in enumerate(rows[0].keys() | rows[1].keys(), 1):
            to = _on_its_way(rows[0].get(key), rows[1].get(key))
            if to is not None:
                going[to].append(key)
            if not number % SEARCHED_AT_ONCE:
                # A bucket may have ten thousand records, and this router serves calls.
                await asyncio.sleep(0)


def _on_its_way(at_a: record_pb2.Record | None, at_b: record_pb2.Record | None) -> Store | None:
    """Return the store that a record was released to and has not reached."""
    found = [(version_from_pb(one.version), store) for store, one in zip(Store, (at_a, at_b), strict=True) if one]
    version, holder = max(found)
    newest = at_a if holder is Store.A else at_b
    assert newest is not None, "it has a version"
    owner = store_from_pb(newest.owner, "owner")
    return owner if owner is not holder and (version, owner) not in found else None

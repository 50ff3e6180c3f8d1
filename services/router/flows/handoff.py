"""Bringing one record, or the absence of one bucket, to where it is wanted.

Everything here may be done twice, by several routers, in the middle, or long after it was wanted: a release that is
repeated returns what was released, an adopt keeps the higher version. So nothing is ever undone, only finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from enum import Enum
from typing import Any, TypeVar

from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS, version_from_pb
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.stores import StoreClient, Stores
from services.router.flows.traffic import Traffic

STEP_SECONDS = 2.0
"""Bound on one step of a handoff."""

PAGE = 500
"""Keys of a bucket that are listed at once."""

Result = pb.ReleaseRecordsResponse

T = TypeVar("T")


class Moved(Enum):
    HERE = "here"
    """The record, or its bucket's absence, has arrived: ask again."""
    ABSENT = "absent"
    """There is no record, and the source may say so: ask it."""
    BUSY = "busy"
    """It could not be had now: the owner may do the work where the record is."""


class Single:
    """One flight per key: whoever asks for the same while it is under way gets the same result."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        task = self._flights.get(key)
        if task is None:
            task = asyncio.ensure_future(work())
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
            # Whoever waits sees the failure; when all have left, nobody needs to.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        result: T = await asyncio.shield(task)
        return result


class Handoffs:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, stores: Stores, traffic: Traffic) -> None:
        self._stores = stores
        self._traffic = traffic
        self._flights = Single()

    async def bring(self, key: str, to: Store, denied: NotOwner, *, create: bool) -> Moved:
        """Moves one record to a store that has just said that it serves, but does not own it (`denied`).

        `create`: the record need not exist.
        """
        return await self._flights.run((key, to, create), lambda: self._bring(key, to, denied, create))

    async def _bring(self, key: str, to: Store, denied: NotOwner, create: bool) -> Moved:
        for _ in range(2):
            result = await self._release(key, to, create)
            if result.outcome == Result.OUTCOME_BUSY:
                return Moved.BUSY
            if result.outcome == Result.OUTCOME_ABSENT:
                return Moved.ABSENT
            if result.HasField("record") and version_from_pb(result.record.version) > denied.version:
                await self.adopt([result.record], to)
                self._traffic.moved(key)
                return Moved.HERE
            if denied.absent:
                await self.finish_absence(bucket_of(key))
                return Moved.HERE
            # The target's own row is the newest: it was released towards the source and has not arrived there yet.
            released = await self._release(key, to.other, create=False)
            if released.outcome != Result.OUTCOME_RELEASED:
                return Moved.BUSY
            await self.adopt([released.record], to.other)
        return Moved.BUSY

    async def _release(self, key: str, to: Store, create: bool) -> Result.Result:
        source = self._stores[to.other]
        request = pb.ReleaseRecordsRequest(keys=[key], to=STORE_NUMBERS[to], create=create)
        answer: Result = await source.ask(source.replication.ReleaseRecords, request, STEP_SECONDS)
        return answer.results[0]

    async def adopt(self, records: Sequence[record_pb2.Record], to: Store) -> None:
        target = self._stores[to]
        request = pb.AdoptRecordsRequest(records=records)
        await target.ask(target.replication.AdoptRecords, request, STEP_SECONDS)

    async def move_absence(self, bucket: int, to: Store) -> None:
        """Hands the right to create in a bucket over. What the target lacks is copied ahead, so that the time in which
        nobody may create is short."""
        source = self._stores[to.other]
        await self._copy_missing(bucket, to)
        request = pb.ReleaseAbsenceRequest(bucket=bucket, to=STORE_NUMBERS[to])
        await source.ask(source.replication.ReleaseAbsence, request, STEP_SECONDS)
        await self.finish_absence(bucket)

    async def finish_absence(self, bucket: int) -> None:
        """Completes a move of a bucket's absence that has begun. Does nothing when a store owns it."""
        await self._flights.run(bucket, lambda: self._finish_absence(bucket))

    async def _finish_absence(self, bucket: int) -> None:
        request = pb.ListAbsencesRequest(buckets=[bucket])
        found = {
            store: (await client.ask(client.replication.ListAbsences, request, STEP_SECONDS)).absences[0]
            for store, client in self._stores.items()
        }
        if any(absence.owner == STORE_NUMBERS[store] for store, absence in found.items()):
            return
        releaser = max(found, key=lambda store: (found[store].term, found[store].version))
        # The keys are listed after the release has committed: from then on the releaser makes no new one.
        if not await self._copy_missing(bucket, releaser.other):
            return
        target = self._stores[releaser.other]
        adopt = pb.AdoptAbsenceRequest(absence=found[releaser])
        await target.ask(target.replication.AdoptAbsence, adopt, STEP_SECONDS)

    async def _copy_missing(self, bucket: int, to: Store) -> bool:
        """Says whether every row of the source was there or has been copied; if not, it is for the next one to try."""
        source, target = self._stores[to.other], self._stores[to]
        keys = await self.keys(source, bucket)
        if not keys:
            return True
        known = set(await self.keys(target, bucket))
        missing = [key for key in keys if key not in known]
        given_up: list[str] = []
        while missing:
            part = pb.ReadRecordsRequest(keys=missing[:PAGE])
            answer = await source.ask(source.replication.ReadRecords, part, STEP_SECONDS)
            if not answer.rows:
                raise ValueError(f"store {to.other} answered no row for {len(part.keys)} keys that it has listed")
            records = [row.record for row in answer.rows if row.HasField("record")]
            given_up += [record.key for record in records if record.owner == STORE_NUMBERS[to]]
            await self.adopt([record for record in records if record.owner != STORE_NUMBERS[to]], to)
            # An answer that was cut for its size leaves the rest for the next round.
            missing = missing[len(answer.rows) :]
        return await self._adopt_again(given_up, to)

    async def _adopt_again(self, keys: Sequence[str], to: Store) -> bool:
        """Records that were given up before and have not arrived. A copy would make the target their owner without the
        requests that they have served; what their release answers again brings these along."""
        source = self._stores[to.other]
        while keys:
            request = pb.ReleaseRecordsRequest(keys=keys[:PAGE], to=STORE_NUMBERS[to])
            answer = await source.ask(source.replication.ReleaseRecords, request, STEP_SECONDS)
            released = [result.record for result in answer.results if result.outcome == Result.OUTCOME_RELEASED]
            await self.adopt(released, to)
            if len(released) < len(answer.results):
                return False
            keys = [*answer.remaining, *keys[PAGE:]]
        return True

    async def keys(self, client: StoreClient, bucket: int, *, owned_only: bool = False) -> list[str]:
        """Of a bucket, in order."""
        keys: list[str] = []
        more = True
        while more:
            request = pb.ExportRecordsRequest(
                after=keys[-1] if keys else "", limit=PAGE, bucket=bucket, owned_only=owned_only, keys_only=True
            )
            answer = await client.ask(client.replication.ExportRecords, request, STEP_SECONDS)
            keys += [record.key for record in answer.records]
            more = answer.more
        return keys

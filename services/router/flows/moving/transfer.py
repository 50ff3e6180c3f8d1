"""The steps of which everything that moves between the stores is made: each one call, each safe to repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.stores import Away, Refused, StoreClient, Stores

STEP_SECONDS = 2.0
"""Bound on a step for one record."""

BULK_SECONDS = 10.0
"""Bound on a step for many."""

ATTEMPTS = 4
"""At a step, when the store fails."""

PAGE = 500
"""Keys that are listed or read at once."""

Result = pb.ReleaseRecordsResponse.Result
RELEASED = pb.ReleaseRecordsResponse.OUTCOME_RELEASED
ABSENT = pb.ReleaseRecordsResponse.OUTCOME_ABSENT
BUSY = pb.ReleaseRecordsResponse.OUTCOME_BUSY


@dataclass(frozen=True, slots=True)
class Copied:
    """Records that a copy left out."""

    busy: Sequence[str]
    """Could not be had now."""
    refused: Mapping[str, str]
    """Cannot be copied as they are: by key, the reason."""


class Transfer:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self.too_large: set[str] = set()
        """Keys of records that could not be taken because no event can carry them: few, an old program left them."""

    async def release(
        self, keys: Sequence[str], to: Store, *, create: bool = False, seconds: float = BULK_SECONDS
    ) -> pb.ReleaseRecordsResponse:
        """The other store gives records up; what was given up before is answered again."""
        source = self._stores[to.other]
        request = pb.ReleaseRecordsRequest(keys=keys, to=STORE_NUMBERS[to], create=create)
        answer: pb.ReleaseRecordsResponse = await _ask(source, source.replication.ReleaseRecords, request, seconds)
        return answer

    async def adopt(self, records: Sequence[record_pb2.Record], to: Store, seconds: float = BULK_SECONDS) -> None:
        """A store takes records, those that it does not know newer."""
        if records:
            target = self._stores[to]
            await _ask(target, target.replication.AdoptRecords, pb.AdoptRecordsRequest(records=records), seconds)

    async def absences(self, store: Store, buckets: Sequence[int] = ()) -> Sequence[record_pb2.Absence]:
        """Of these buckets, or of all."""
        client = self._stores[store]
        request = pb.ListAbsencesRequest(buckets=buckets)
        answer: pb.ListAbsencesResponse = await _ask(client, client.replication.ListAbsences, request, BULK_SECONDS)
        return answer.absences

    async def disputed(self, store: Store, buckets: Sequence[int]) -> set[int]:
        """Which of these buckets have an open conflict in the store's journal."""
        client = self._stores[store]
        request = pb.ListAbsencesRequest(buckets=buckets)
        answer: pb.ListAbsencesResponse = await _ask(client, client.replication.ListAbsences, request, BULK_SECONDS)
        return set(answer.disputed)

    async def release_absences(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.Absence]:
        """The other store creates nothing in these buckets any more when this returns, but for those that it still
        owns by the answer: what stands there then, in the same order."""
        source = self._stores[to.other]
        request = pb.ReleaseAbsencesRequest(buckets=buckets, to=STORE_NUMBERS[to])
        answer: pb.ReleaseAbsencesResponse = await _ask(
            source, source.replication.ReleaseAbsences, request, BULK_SECONDS
        )
        return answer.absences

    async def adopt_absences(
        self, absences: Sequence[record_pb2.Absence], to: Store, *, despite_conflicts: bool = False
    ) -> Sequence[record_pb2.Absence]:
        """Returns what stands at the target then, in the same order."""
        if not absences:
            return ()
        target = self._stores[to]
        request = pb.AdoptAbsencesRequest(absences=absences, despite_conflicts=despite_conflicts)
        answer: pb.AdoptAbsencesResponse = await _ask(target, target.replication.AdoptAbsences, request, BULK_SECONDS)
        return answer.absences

    async def return_absences(self, absences: Sequence[record_pb2.Absence], by: Store) -> Sequence[record_pb2.Absence]:
        """This store declines buckets that were released to it. Returns those that it declined now, each in the version
        that the releaser may adopt; none of them if the store runs an earlier program, which cannot decline."""
        client = self._stores[by]
        request = pb.ReturnAbsencesRequest(absences=absences)
        try:
            answer: pb.ReturnAbsencesResponse = await _ask(
                client, client.replication.ReturnAbsences, request, BULK_SECONDS
            )
        except Refused as refused:
            if refused.error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return ()
        return answer.absences

    async def keys(self, store: Store, buckets: Sequence[int], *, owned_only: bool = False) -> list[str]:
        """Of some buckets, in the order of the buckets' numbers."""
        return [record.key for record in await self.envelopes(store, buckets, owned_only=owned_only)]

    async def envelopes(
        self, store: Store, buckets: Sequence[int], *, owned_only: bool = False
    ) -> list[record_pb2.Record]:
        """As `keys`, with what a store says of each record beside its payload and the requests that it served."""
        client = self._stores[store]
        found: list[record_pb2.Record] = []
        left = sorted(buckets)
        request = pb.ExportRecordsRequest(limit=PAGE, buckets=left, owned_only=owned_only, keys_only=True)
        more = bool(left)
        while more:
            answer: pb.ExportRecordsResponse = await _ask(
                client, client.replication.ExportRecords, request, BULK_SECONDS
            )
            found += answer.records
            more = answer.more
            if more and not answer.records:
                raise ValueError(f"store {store} answered an empty page and says that there is more")
            if more:
                last = found[-1].key
                left = left[left.index(bucket_of(last)) :]
                request = pb.ExportRecordsRequest(
                    after=last, limit=PAGE, buckets=left, owned_only=owned_only, keys_only=True
                )
        return found

    async def copy(self, keys: Sequence[str], to: Store) -> Copied:
        """Copies records that a store lacks, whichever store owns them.

        A copy has the requests that the record has served: the store answers retries of them if it becomes the owner,
        by a handoff or because the other store is lost. A store of the release before sends copies without them, so a
        record that was given up to this store is not copied but taken from its release.
        """
        source = self._stores[to.other]
        given_up: list[str] = []
        refused: dict[str, str] = {}
        left = sorted(keys)
        while left:
            request = pb.ReadRecordsRequest(keys=left[:PAGE], mark_too_large=True, with_served=True)
            answer: pb.ReadRecordsResponse = await _ask(source, source.replication.ReadRecords, request, BULK_SECONDS)
            if not answer.rows:
                raise ValueError(f"store {to.other} answered no row for {len(request.keys)} keys")
            records = [row.record for row in answer.rows if row.HasField("record")]
            refused.update(
                {row.key: too_large(row.key, row.too_large_bytes) for row in answer.rows if row.too_large_bytes}
            )
            given_up += [record.key for record in records if record.owner == STORE_NUMBERS[to]]
            await self.adopt([record for record in records if record.owner != STORE_NUMBERS[to]], to)
            # An answer that was cut for its size leaves the rest for the next round.
            left = left[len(answer.rows) :]
        return Copied(await self.take(given_up, to), refused)

    async def take(self, keys: Sequence[str], to: Store) -> list[str]:
        """Released by the other store and adopted by this one. Returns those that were busy or not there to be had."""
        failed: list[str] = []
        left = list(keys)
        while left:
            answer = await self.release(left[:PAGE], to)
            results = answer.results
            released = [result.record for result in results if result.outcome == RELEASED]
            await self.adopt(released, to)
            failed += [result.key for result in results if result.outcome != RELEASED]
            self.too_large.update(result.key for result in results if result.too_large)
            self.too_large.difference_update(record.key for record in released)
            left = [*answer.remaining, *left[PAGE:]]
        return failed


def too_large(key: str, size: int) -> str:
    """Why a record cannot be copied, for a person."""
    return f"{key} has {size} bytes, at most {MAX_COPY_BYTES} can be copied: make it smaller or delete it"


async def _ask(client: StoreClient, method: Any, request: Any, seconds: float) -> Any:
    """Again, when the store fails rather than refuses: every call of a handoff may be made twice. Not when it is away:
    then others wait for it better than this."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await client.ask(method, request, seconds)
        except Away:
            raise
        except Refused as refused:
            if not refused.is_fault:
                raise
    return await client.ask(method, request, seconds)

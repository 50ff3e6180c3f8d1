"""The steps of every move between the stores. Each step is one call and safe to repeat."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from libs.errors import BatonError
from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.stores import Away, Refused, StoreClient, Stores

STEP_SECONDS = 2.0
"""Timeout of a step for one record."""

BULK_SECONDS = 10.0
"""Timeout of a step for many records."""

ATTEMPTS = 4
"""Attempts at a step while the store fails."""

PAGE = 500
"""Keys per page of a list or a read."""

KEYS = 1000
"""Keys per page of a list of keys alone."""

Result = pb.ReleaseRecordsResponse.Result
RELEASED = pb.ReleaseRecordsResponse.OUTCOME_RELEASED
ABSENT = pb.ReleaseRecordsResponse.OUTCOME_ABSENT
BUSY = pb.ReleaseRecordsResponse.OUTCOME_BUSY


class NotListed(BatonError):
    """A process of a store does not list records of cohorts: upgrade it."""

    code = "FAILED_PRECONDITION"
    reason = "RECORDS_NOT_LISTED"


@dataclass(frozen=True, slots=True)
class Copied:
    """Records that a copy left out."""

    busy: Sequence[str]
    """Keys of records that are busy now."""
    refused: Mapping[str, str]
    """Records that cannot be copied: the reason by key."""


class Transfer:
    """Raises Away and Refused, as the stores' clients do."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self.too_large: set[str] = set()
        """Keys of records that exceed the size of an event: a few rows of an old program."""

    async def release(
        self, keys: Sequence[str], to: Store, *, create: bool = False, seconds: float = BULK_SECONDS
    ) -> pb.ReleaseRecordsResponse:
        """Let the other store release records. Records that it released before are returned again."""
        source = self._stores[to.other]
        request = pb.ReleaseRecordsRequest(keys=keys, to=STORE_NUMBERS[to], create=create)
        answer: pb.ReleaseRecordsResponse = await _ask(source, source.replication.ReleaseRecords, request, seconds)
        return answer

    async def adopt(self, records: Sequence[record_pb2.Record], to: Store, seconds: float = BULK_SECONDS) -> None:
        """Let a store adopt records. The store ignores records that it has in a newer version."""
        if records:
            target = self._stores[to]
            await _ask(target, target.replication.AdoptRecords, pb.AdoptRecordsRequest(records=records), seconds)

    async def bucket_owners(self, store: Store, buckets: Sequence[int] = ()) -> Sequence[record_pb2.BucketOwner]:
        """Return the ownership rows of these buckets, or of all."""
        client = self._stores[store]
        request = pb.ListBucketsRequest(buckets=buckets)
        answer: pb.ListBucketsResponse = await _ask(client, client.replication.ListBuckets, request, BULK_SECONDS)
        return answer.bucket_owners

    async def disputed(self, store: Store, buckets: Sequence[int]) -> set[int]:
        """Return the buckets with an open conflict in the store's journal."""
        client = self._stores[store]
        request = pb.ListBucketsRequest(buckets=buckets)
        answer: pb.ListBucketsResponse = await _ask(client, client.replication.ListBuckets, request, BULK_SECONDS)
        return set(answer.disputed)

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        """Let the other store release these buckets. Returns their rows after that, in the same order.

        From then on it creates no record in them, except in buckets that it still owns by the returned row.
        """
        source = self._stores[to.other]
        request = pb.ReleaseBucketsRequest(buckets=buckets, to=STORE_NUMBERS[to])
        answer: pb.ReleaseBucketsResponse = await _ask(source, source.replication.ReleaseBuckets, request, BULK_SECONDS)
        return answer.bucket_owners

    async def adopt_buckets(
        self, bucket_owners: Sequence[record_pb2.BucketOwner], to: Store, *, despite_conflicts: bool = False
    ) -> Sequence[record_pb2.BucketOwner]:
        """Let a store adopt these buckets. Returns its rows after that, in the same order."""
        if not bucket_owners:
            return ()
        target = self._stores[to]
        request = pb.AdoptBucketsRequest(bucket_owners=bucket_owners, despite_conflicts=despite_conflicts)
        answer: pb.AdoptBucketsResponse = await _ask(target, target.replication.AdoptBuckets, request, BULK_SECONDS)
        return answer.bucket_owners

    async def return_buckets(
        self, bucket_owners: Sequence[record_pb2.BucketOwner], by: Store
    ) -> Sequence[record_pb2.BucketOwner]:
        """Let a store decline buckets that were released to it.

        Returns those that it declined, each in the version that the releaser may adopt. A store of an earlier release
        cannot decline, so the result is empty.
        """
        client = self._stores[by]
        request = pb.ReturnBucketsRequest(bucket_owners=bucket_owners)
        try:
            answer: pb.ReturnBucketsResponse = await _ask(
                client, client.replication.ReturnBuckets, request, BULK_SECONDS
            )
        except Refused as refused:
            if refused.error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return ()
        return answer.bucket_owners

    async def keys(self, store: Store, buckets: Sequence[int], *, owned_only: bool = False) -> list[str]:
        """Return the keys of some buckets, ordered by bucket number."""
        found: list[str] = []
        async for page in self._pages(store, buckets, owned_only=owned_only, names_only=True):
            found += _keys_of(page)
        return found

    async def keys_by_rule(
        self, store: Store, *, pattern: str = "", account: str = ""
    ) -> AsyncGenerator[Sequence[str], None]:
        """Yield pages of the keys that a store owns, of this pattern or account. Raises NotListed."""
        client, last, more = self._stores[store], "", True
        while more:
            request = pb.ExportRecordsRequest(
                after=last,
                limit=KEYS,
                owned_only=True,
                keys_only=True,
                names_only=True,
                pattern=pattern,
                account=account,
            )
            page: pb.ExportRecordsResponse = await _ask(client, client.replication.ExportRecords, request, BULK_SECONDS)
            if not page.by_rule:
                raise NotListed(f"store {store} runs an earlier release, which does not list records of cohorts")
            yield page.keys
            more = page.more and bool(page.keys)
            last = page.keys[-1] if page.keys else ""

    async def envelopes(self, store: Store, buckets: Sequence[int]) -> list[record_pb2.Record]:
        """Like `keys`, but return whole records, without payload and served requests."""
        return [record async for page in self._pages(store, buckets) for record in page.records]

    async def _pages(
        self, store: Store, buckets: Sequence[int], *, owned_only: bool = False, names_only: bool = False
    ) -> AsyncGenerator[pb.ExportRecordsResponse, None]:
        client, left, last, more = self._stores[store], sorted(buckets), "", bool(buckets)
        while more:
            request = pb.ExportRecordsRequest(
                after=last,
                limit=KEYS if names_only else PAGE,
                buckets=left,
                owned_only=owned_only,
                keys_only=True,
                names_only=names_only,
            )
            page: pb.ExportRecordsResponse = await _ask(client, client.replication.ExportRecords, request, BULK_SECONDS)
            yield page
            more = page.more
            if more and not _keys_of(page):
                raise ValueError(f"store {store} answered an empty page that claims to have a next one")
            if more:
                last = _keys_of(page)[-1]
                left = left[left.index(bucket_of(last)) :]

    async def copy(self, keys: Sequence[str], to: Store) -> Copied:
        """Copy records that a store lacks, whichever store owns them.

        A copy includes the record's served requests, so that the store can answer retries of them if it becomes the
        owner by a handoff or a seizure. A store of an earlier release sends copies without them. Therefore a record
        that was released to this store is not copied, but adopted from its release.
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
            # An answer may be cut for its size. The next round asks for the rest.
            left = left[len(answer.rows) :]
        return Copied(await self.take(given_up, to), refused)

    async def take(self, keys: Sequence[str], to: Store) -> list[str]:
        """Let the other store release records and this one adopt them. Returns keys that were busy or not released."""
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


def _keys_of(page: pb.ExportRecordsResponse) -> Sequence[str]:
    """Return the keys of a page. A store of an earlier release returns records."""
    return page.keys or [record.key for record in page.records]


def too_large(key: str, size: int) -> str:
    """Return the message for a record that is too large to copy."""
    return f"{key} has {size} bytes, at most {MAX_COPY_BYTES} can be copied: make it smaller or delete it"


async def _ask(client: StoreClient, method: Any, request: Any, seconds: float) -> Any:
    """Call a store, and retry if it fails rather than refuses: each call of a handoff is idempotent.

    An unreachable store is not retried here, since callers have their own way to wait for it.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await client.ask(method, request, seconds)
        except Away:
            raise
        except Refused as refused:
            if not refused.is_fault:
                raise
    return await client.ask(method, request, seconds)

"""The export of A for its cold backup: all records, bucket by bucket, each compared with the store's own digest.

A follows B while it is exported. So a bucket that changes between its export and its digest is exported again; each
bucket in the backup is as the store had it at one moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from libs.errors import BatonError
from libs.ownership.model import BUCKETS, Store
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.core.row_sum import Sum, with_records
from services.router.flows.stores import StoreClient, Stores

PAGE_RECORDS = 200
BUCKETS_AT_ONCE = 32
CALL_SECONDS = 30.0
LOOKS = 50
PAUSE_SECONDS = 0.1

Page = Sequence[record_pb2.Record]


class BackupUnfit(BatonError):
    """The backup cannot be made, or is not the one that was exported."""

    code = "FAILED_PRECONDITION"
    reason = "BACKUP_DIFFERS"


class Export:
    """One export. `total` is that of the store's own digests, of all pages so far."""

    def __init__(self, stores: Stores) -> None:
        self._client: StoreClient = stores[Store.A]
        self.total = Sum()

    async def pages(self) -> AsyncIterator[Page]:
        """Raises BackupUnfit, and the errors of the store's client."""
        for first in range(0, BUCKETS, BUCKETS_AT_ONCE):
            digests = await self._digests(range(first, min(first + BUCKETS_AT_ONCE, BUCKETS)))
            for bucket in sorted(digests):
                for page in await self._bucket(bucket, digests[bucket]):
                    yield page

    async def _bucket(self, bucket: int, digest: Sum) -> list[Page]:
        for _ in range(LOOKS):
            pages = await self._export(bucket)
            found = Sum()
            for page in pages:
                found = with_records(found, page)
            if found == digest:
                self.total = self.total.with_sum(digest)
                return pages
            await asyncio.sleep(PAUSE_SECONDS)
            digest = (await self._digests([bucket])).get(bucket, Sum())
        raise BackupUnfit(
            f"bucket {bucket} of store A has another digest than its records after {LOOKS} looks: it changes all the"
            " time, or a row was edited: baton reconcile --deep"
        )

    async def _digests(self, buckets: Sequence[int]) -> dict[int, Sum]:
        request = pb.DigestBucketsRequest(buckets=buckets, deep=True)
        answer = await self._client.ask(self._client.replication.DigestBuckets, request, CALL_SECONDS)
        return {one.bucket: Sum().plus(one.records, one.content, one.envelope) for one in answer.buckets}

    async def _export(self, bucket: int) -> list[Page]:
        pages: list[Page] = []
        request = pb.ExportRecordsRequest(buckets=[bucket], limit=PAGE_RECORDS)
        more = True
        while more:
            answer = await self._client.ask(self._client.replication.ExportRecords, request, CALL_SECONDS)
            if answer.records:
                pages.append(list(answer.records))
                request.after = answer.records[-1].key
            more = answer.more and bool(answer.records)
        return pages

"""What a store shows of its rows so that they can be compared with the other store's, without sending them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from libs.backend.checks import MAX_RECORDS, check_buckets, check_keys, check_limit
from libs.contract.operations import Operations
from libs.errors import InvalidField
from libs.ownership.model import bucket_of
from libs.ownership.wire import STORE_NUMBERS, version_to_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.store.port import BucketDigest, ExportQuery, Kept, StorePorts

PAGE_ROWS = 500
MAX_DEEP_BUCKETS = 64
"""So that an answer comes within seconds, however large the store is."""


class Comparison:
    def __init__(self, operations: Operations, ports: StorePorts) -> None:
        self._operations = operations
        self._inspection = ports.inspection
        self._me = ports.store

    async def digests(self, buckets: Sequence[int], *, deep: bool) -> pb.DigestBucketsResponse:
        """Of these buckets, or of all. Deep: made anew from the rows; of some buckets only. Raises InvalidField."""
        if not deep:
            found = [(digest, 0) for digest in await self._inspection.digests(buckets)]
        elif not 0 < len(buckets) <= MAX_DEEP_BUCKETS:
            raise InvalidField("buckets", f"{len(buckets)} buckets", f"1 to {MAX_DEEP_BUCKETS} when deep")
        else:
            found = await self._deep(sorted(set(buckets)))
        return _digests_to_pb(found)

    async def counts(self) -> pb.DigestBucketsResponse:
        """Of all buckets."""
        return _digests_to_pb([(counted, 0) for counted in await self._inspection.counts()])

    async def looks(self, request: pb.LookAtRecordsRequest) -> pb.LookAtRecordsResponse:
        """Raises InvalidField."""
        check_keys(request.keys)
        (bucket,) = check_buckets([request.bucket], "bucket")
        place = (bucket,) if not request.keys else ()
        query = ExportQuery(request.after, check_limit(request.limit, MAX_RECORDS), place, keys=tuple(request.keys))
        kept, more = await self._inspection.rows(query)
        return pb.LookAtRecordsResponse(looks=[self._look(one) for one in kept], more=more)

    def _look(self, kept: Kept) -> pb.LookAtRecordsResponse.Look:
        row = kept.row
        look = pb.LookAtRecordsResponse.Look(
            key=row.key,
            version=version_to_pb(row.version),
            owner=STORE_NUMBERS[row.owner],
            write_version=version_to_pb(row.write_version),
            digest=kept.digest,
            content=row.digest,
        )
        written = self._operations.written_seconds(row)
        if written is not None:
            look.update_time.FromNanoseconds(round(written * 1e9))
        return look

    async def _deep(self, buckets: Sequence[int]) -> list[tuple[BucketDigest, int]]:
        """Digests as they are kept, and made anew."""
        found: dict[int, tuple[BucketDigest, int]] = {}
        async for row, digest in self._rows(buckets):
            bucket = bucket_of(row.key)
            before, content = found.get(bucket, (BucketDigest(bucket, 0, 0, 0), 0))
            owned = before.owned + (row.owner is self._me)
            after = BucketDigest(bucket, before.records + 1, owned, before.digest ^ digest)
            found[bucket] = after, content ^ row.digest
        return [found[bucket] for bucket in sorted(found)]

    async def _rows(self, buckets: Sequence[int]) -> AsyncIterator[Kept]:
        query = ExportQuery(limit=PAGE_ROWS, buckets=tuple(buckets))
        more = bool(buckets)
        while more:
            page, more = await self._inspection.rows(query)
            for kept in page:
                yield kept
            if page:
                last = page[-1].row.key
                left = query.buckets[query.buckets.index(bucket_of(last)) :]
                query = replace(query, after=last, buckets=left)
            # A store in memory never waits: let the others on.
            await asyncio.sleep(0)


def _digests_to_pb(found: Sequence[tuple[BucketDigest, int]]) -> pb.DigestBucketsResponse:
    return pb.DigestBucketsResponse(
        buckets=[
            pb.DigestBucketsResponse.Bucket(
                bucket=one.bucket, records=one.records, owned=one.owned, digest=one.digest, content=content
            )
            for one, content in found
        ]
    )

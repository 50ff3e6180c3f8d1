"""Digests of a store's rows, by which they are compared with the other store's without sending them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from libs.backend.checks import MAX_RECORDS, check_buckets, check_keys, check_limit, check_parts
from libs.contract.operations import Operations
from libs.errors import InvalidField
from libs.ownership.model import Row, bucket_of
from libs.ownership.wire import STORE_NUMBERS, UnreadableRecord, version_to_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.store.inspection import BucketDigest, ExportQuery, Kept
from libs.store.port import StorePorts

PAGE_ROWS = 500
MAX_DEEP_BUCKETS = 64
"""Limits the time of an answer to seconds, however large the store is."""


class _Anew(NamedTuple):
    """XOR of digests recomputed from the rows of a bucket."""

    content: int
    envelope: int


class Comparison:
    def __init__(self, operations: Operations, ports: StorePorts) -> None:
        self._operations = operations
        self._inspection = ports.inspection
        self._me = ports.store

    async def digests(
        self, buckets: Sequence[int], *, deep: bool = False, parts: bool = False
    ) -> pb.DigestBucketsResponse:
        """Digests of these buckets, or of all. `deep`: recomputed from the rows. `parts`: those of the buckets' parts
        too. Either for some buckets only. Raises InvalidField."""
        found: list[tuple[BucketDigest, _Anew | None]]
        if deep and parts:
            raise InvalidField("parts", "true", "false when deep: parts are of stored digests")
        if (deep or parts) and not 0 < len(buckets) <= MAX_DEEP_BUCKETS:
            wanted = "deep" if deep else "with parts"
            raise InvalidField("buckets", f"{len(buckets)} buckets", f"1 to {MAX_DEEP_BUCKETS} when {wanted}")
        if not deep:
            found = [(digest, None) for digest in await self._inspection.digests(buckets, parts=parts)]
        else:
            found = list(await self._deep(sorted(set(buckets))))
        return _digests_to_pb(found)

    async def counts(self) -> pb.DigestBucketsResponse:
        """Counts of all buckets."""
        return _digests_to_pb([(counted, None) for counted in await self._inspection.counts()])

    async def looks(self, request: pb.LookAtRecordsRequest) -> pb.LookAtRecordsResponse:
        check_keys(request.keys)
        (bucket,) = check_buckets([request.bucket], "bucket")
        place = (bucket,) if not request.keys else ()
        query = ExportQuery(
            request.after,
            check_limit(request.limit, MAX_RECORDS),
            place,
            keys=tuple(request.keys),
            parts=tuple(check_parts(request.parts)),
        )
        if request.brief:
            records, more = await self._inspection.export(replace(query, keys_only=True))
            return pb.LookAtRecordsResponse(looks=[_brief(record.row) for record in records], more=more)
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
            content=self._content(kept),
            envelope=row.envelope_digest,
        )
        written = self._operations.written_seconds(row)
        if written is not None:
            look.update_time.FromNanoseconds(round(written * 1e9))
        return look

    async def _deep(self, buckets: Sequence[int]) -> list[tuple[BucketDigest, _Anew]]:
        """Stored and recomputed digests."""
        found: dict[int, tuple[BucketDigest, _Anew]] = {}
        async for kept in self._rows(buckets):
            row = kept.row
            bucket = bucket_of(row.key)
            before, anew = found.get(bucket, (BucketDigest(bucket, 0, 0, 0), _Anew(0, 0)))
            owned = before.owned + (row.owner is self._me)
            after = BucketDigest(bucket, before.records + 1, owned, before.digest ^ kept.digest)
            found[bucket] = after, _Anew(anew.content ^ self._content(kept), anew.envelope ^ row.envelope_digest)
        return [found[bucket] for bucket in sorted(found)]

    def _content(self, kept: Kept) -> int:
        """The recomputed digest. It never matches for a row that does not fit the contract, so that the row shows as
        CORRUPT."""
        try:
            self._operations.check_row(kept.row)
        except UnreadableRecord:
            return kept.content ^ 1
        return kept.content

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
            # A store in memory never waits, so yield to other calls.
            await asyncio.sleep(0)


def _brief(row: Row) -> pb.LookAtRecordsResponse.Look:
    return pb.LookAtRecordsResponse.Look(
        key=row.key, version=version_to_pb(row.version), owner=STORE_NUMBERS[row.owner]
    )


def _digests_to_pb(found: Sequence[tuple[BucketDigest, _Anew | None]]) -> pb.DigestBucketsResponse:
    answer = pb.DigestBucketsResponse()
    for one, anew in found:
        bucket = answer.buckets.add(
            bucket=one.bucket, records=one.records, owned=one.owned, digest=one.digest, parts=one.parts
        )
        if anew is not None:
            bucket.content, bucket.envelope = anew
    return answer

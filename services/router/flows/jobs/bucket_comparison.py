"""Compares buckets of both stores by digest, and rows by key. Changes nothing.

The two stores are never read at the same moment, so the rows of a record that is being changed may differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from libs.errors import BatonError
from libs.ownership.model import Store
from libs.ownership.wire import store_from_pb, version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.core.differences import Pair, RowView
from services.router.flows.stores import StoreClient, Stores

PAGE_ROWS = 500
CALL_SECONDS = 10.0
DIGEST_SECONDS = 30.0
"""Timeout of a digest of all buckets, which reads every row; the longest that a store allows."""


_Shown = pb.LookAtRecordsResponse.Look


class EmptyPage(BatonError):
    """A store reports more rows, but returns none."""


class BucketPair(NamedTuple):
    """A bucket at A and at B."""

    bucket: int
    a: pb.DigestBucketsResponse.Bucket
    b: pb.DigestBucketsResponse.Bucket

    @property
    def records(self) -> int:
        """Approximate number of records in the bucket."""
        return max(self.a.records, self.b.records)

    @property
    def differing_parts(self) -> list[int]:
        """Parts of the bucket whose digests differ; empty: rows of all parts may. A store that does not support parts
        reports none, so all parts with rows at the other one differ."""
        both = zip_longest(self.a.parts, self.b.parts, fillvalue=0)
        return [part for part, (a, b) in enumerate(both) if a != b]

    @property
    def is_equal(self) -> bool:
        digests = {self.a.digest, self.b.digest}
        if self.a.content or self.b.content:
            digests |= {self.a.content, self.b.content}
        both = self.a.HasField("envelope") and self.b.HasField("envelope")
        same = not both or self.a.envelope == self.b.envelope
        return same and self.a.records == self.b.records and len(digests) == 1


@dataclass(frozen=True, slots=True)
class RowPage:
    """Rows of one bucket, by key."""

    rows: Sequence[tuple[str, Pair]]
    after: str
    """Key after which the next page begins; "" after the last page."""


class BucketComparison:
    """Reads both stores for a comparison. Each method raises the stores' errors and EmptyPage."""

    def __init__(self, stores: Stores) -> None:
        self._stores = [stores[store] for store in Store]

    async def digests(
        self, buckets: Sequence[int] = (), *, deep: bool = False, parts: bool = False
    ) -> list[BucketPair]:
        """Digests of these buckets, or of all, by number. Buckets that are empty at both stores are left out. `parts`:
        with those of each part, not combined with `deep`."""
        request = pb.DigestBucketsRequest(buckets=buckets, deep=deep, parts=parts)
        asked = (client.ask(client.replication.DigestBuckets, request, DIGEST_SECONDS) for client in self._stores)
        a, b = ({one.bucket: one for one in answer.buckets} for answer in await asyncio.gather(*asked))
        empty = pb.DigestBucketsResponse.Bucket()
        return [BucketPair(bucket, a.get(bucket, empty), b.get(bucket, empty)) for bucket in sorted({*a, *b})]

    async def page(self, bucket: int, after: str, parts: Sequence[int] = ()) -> RowPage:
        """`parts`: rows of these parts only; empty: all."""
        request = pb.LookAtRecordsRequest(bucket=bucket, after=after, limit=PAGE_ROWS, parts=parts)
        answers = await asyncio.gather(*(self._looks(client, request) for client in self._stores))
        # A page that is not the last one shows only the keys up to its end.
        ends = [answer.looks[-1].key for answer in answers if answer.more]
        end = min(ends, default="")
        a, b = ({one.key: one for one in answer.looks if not end or one.key <= end} for answer in answers)
        return RowPage(_pairs(a, b, {*a, *b}), end)

    async def rows(self, keys: Sequence[str]) -> Sequence[tuple[str, Pair]]:
        """Rows of these keys, sorted by key, each once."""
        a, b = await asyncio.gather(*(self._rows(client, keys) for client in self._stores))
        return _pairs(a, b, keys)

    async def _rows(self, client: StoreClient, keys: Sequence[str]) -> Mapping[str, _Shown]:
        found: dict[str, _Shown] = {}
        request = pb.LookAtRecordsRequest(keys=keys, limit=PAGE_ROWS)
        while True:
            answer = await self._looks(client, request)
            found |= {one.key: one for one in answer.looks}
            if not answer.more:
                return found
            request.after = answer.looks[-1].key

    async def _looks(self, client: StoreClient, request: pb.LookAtRecordsRequest) -> pb.LookAtRecordsResponse:
        answer: pb.LookAtRecordsResponse = await client.ask(client.replication.LookAtRecords, request, CALL_SECONDS)
        if answer.more and not answer.looks:
            raise EmptyPage(f"store {client.store} reports more rows after {request.after!r}, but returns none")
        return answer


def _pairs(a: Mapping[str, _Shown], b: Mapping[str, _Shown], keys: Iterable[str]) -> list[tuple[str, Pair]]:
    return [(key, _pair(a.get(key), b.get(key))) for key in sorted(set(keys))]


def _pair(a: _Shown | None, b: _Shown | None) -> Pair:
    """Both rows. The digest of the envelope is folded into the other two digests, unless an older store has none."""
    both = all(one is None or one.HasField("envelope") for one in (a, b))
    return (
        None if a is None else _look(a, a.envelope if both else 0),
        None if b is None else _look(b, b.envelope if both else 0),
    )


def _look(found: _Shown, envelope: int) -> RowView:
    return RowView(
        version_from_pb(found.version),
        store_from_pb(found.owner, "owner"),
        version_from_pb(found.write_version),
        found.digest ^ envelope,
        found.content ^ envelope,
        found.update_time.ToNanoseconds() / 1e9 if found.HasField("update_time") else None,
    )

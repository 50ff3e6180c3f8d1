"""Inspection of a whole store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from libs.contract.pages import ACCOUNT
from libs.ownership.model import Record, bucket_of
from libs.ownership.patterns import matches
from libs.store.inspection import PARTS, BucketDigest, Census, ExportQuery, Kept, Missing
from libs.store.limits import PULL_BYTES
from libs.store.memory_state import MemoryState
from libs.store.window import size_of


@dataclass(frozen=True)
class MemoryInspection:
    state: MemoryState

    async def export(self, query: ExportQuery) -> tuple[list[Record], bool]:
        records: list[Record] = []
        size = 0
        for key in self._keys(query):
            row = self.state.rows[key]
            if query.owned_only and row.owner is not self.state.store:
                continue
            if query.parts and row.digest % PARTS not in query.parts:
                continue
            if len(records) == query.limit or size >= PULL_BYTES:
                return records, True
            (record,) = self.state.with_served([row])
            if query.keys_only:
                record = replace(record, row=replace(row, payload=b""), served=())
            records.append(record)
            size += size_of(record)
        return records, False

    async def keys(self, query: ExportQuery) -> tuple[list[str], bool]:
        records, more = await self.export(replace(query, keys_only=True))
        return [record.row.key for record in records], more

    async def rows(self, query: ExportQuery) -> tuple[list[Kept], bool]:
        records, more = await self.export(query)
        return [Kept(record.row, record.row.digest) for record in records], more

    def _keys(self, query: ExportQuery) -> list[str]:
        found = self._in_scope(query)
        if query.pattern:
            found = [key for key in found if matches(query.pattern, key)]
        if query.account:
            columns, rows = self.state.columns, self.state.rows
            found = [key for key in found if columns(rows[key]).equals.get(ACCOUNT) == query.account]
        return found

    def _in_scope(self, query: ExportQuery) -> list[str]:
        if query.keys:
            return sorted(key for key in set(query.keys) & self.state.visible_rows().keys() if key > query.after)
        if not query.buckets:
            return sorted(key for key in self.state.visible_rows() if key > query.after)
        first = query.buckets[0], query.after
        pairs = sorted((bucket_of(key), key) for key in self.state.visible_rows())
        return [pair[1] for pair in pairs if pair[0] in query.buckets and pair > first]

    async def digests(self, buckets: Sequence[int] = (), *, parts: bool = False) -> list[BucketDigest]:
        sums: dict[int, BucketDigest] = {}
        nothing = (0,) * PARTS if parts else ()
        for key, row in self.state.rows.items():
            bucket = bucket_of(key)
            if buckets and bucket not in buckets:
                continue
            before = sums.get(bucket, BucketDigest(bucket, 0, 0, 0, nothing))
            owned = before.owned + (row.owner is self.state.store)
            part = row.digest % PARTS
            own = (one ^ row.digest if number == part else one for number, one in enumerate(before.parts))
            sums[bucket] = BucketDigest(bucket, before.records + 1, owned, before.digest ^ row.digest, tuple(own))
        return [sums[bucket] for bucket in sorted(sums)]

    async def counts(self) -> list[BucketDigest]:
        return [one._replace(digest=0) for one in await self.digests()]

    async def connections(self) -> None:
        return None

    async def missing(self, buckets: Sequence[int] = ()) -> list[Missing]:
        found = Counter(bucket_of(key) for key in self.state.rows)
        counted = self.state.counted
        some = buckets or sorted(counted)
        return [Missing(one, counted[one], found[one]) for one in some if counted[one] > found[one]]

    async def count_of(self, account: str, most: int) -> int:
        rows = self.state.rows.values()
        live = (row for row in rows if row.live and self.state.columns(row).equals.get(ACCOUNT) == account)
        return sum(1 for _ in islice(live, most))

    async def census(self) -> Census:
        me = self.state.store
        owned = sum(row.owner is me for row in self.state.rows.values())
        return Census(
            len(self.state.rows), owned, sum(bucket_owner.owner is me for bucket_owner in self.state.bucket_owners)
        )

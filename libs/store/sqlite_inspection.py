"""Inspection of a whole store on SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from libs.contract.pages import ACCOUNT
from libs.ownership.model import BUCKETS, Record, Row
from libs.ownership.patterns import bounds
from libs.sqlite import snapshot
from libs.store.inspection import PARTS, BucketDigest, Census, ExportQuery, Kept, Missing
from libs.store.limits import PULL_BYTES
from libs.store.sqlite_core import WITH_SERVED, Core, served_up_to
from libs.store.sqlite_guards import missing
from libs.store.sqlite_schema import ROW_COLUMNS, ROW_PAYLOAD, VISIBLE, Value, odd_columns, row_from, unsigned
from libs.store.window import effects_of, made_by, size_of, windows_of

T = TypeVar("T")
_ReadPage = Callable[[ExportQuery, str, sqlite3.Connection], tuple[list[T], bool]]
"""Reads the records of a query, up to this key if it is not ""."""


@dataclass(frozen=True)
class SqliteInspection:
    core: Core

    async def export(self, query: ExportQuery) -> tuple[list[Record], bool]:
        return await self._completed(query, self._export)

    async def _completed(self, query: ExportQuery, read: _ReadPage[T]) -> tuple[list[T], bool]:
        """Return a page of records, whose old rows are completed first. Raises StillFilling."""
        while True:
            fill = self.core.fill
            until = "" if fill is None else await fill.prepare(query)
            found, more = await self.core.database.read(partial(read, query, until))
            if found or not until:
                return found, more
            query = replace(query, after=until)

    def _export(self, query: ExportQuery, until: str, connection: sqlite3.Connection) -> tuple[list[Record], bool]:
        """Return rows and their requests from one snapshot."""
        with snapshot(connection):
            return self._records(query, until, connection)

    def _records(self, query: ExportQuery, until: str, connection: sqlite3.Connection) -> tuple[list[Record], bool]:
        found, more = self._page(query, until, connection)
        rows = [_row(values) for values in found]
        known = set() if query.keys_only else _with_served(connection, [row.key for row in rows])
        now = self.core.clock.now()
        records: list[Record] = []
        size = 0
        for row in rows:
            if size >= PULL_BYTES:
                return records, True
            served = windows_of(served_up_to(connection, effects_of([row]))) if row.key in known else {}
            record = Record(row, served.get(row.key, ()), made_by(row), now)
            size += size_of(record)
            records.append(record)
        return records, more

    async def keys(self, query: ExportQuery) -> tuple[list[str], bool]:
        return await self._completed(query, self._keys)

    def _keys(self, query: ExportQuery, until: str, connection: sqlite3.Connection) -> tuple[list[str], bool]:
        keys: list[str] = []
        for (key,) in self._found(query, connection, f"SELECT r.key FROM {self.core.layout.table} r"):
            if len(keys) == query.limit or (until and key.encode() > until.encode()):
                return keys, True
            keys.append(key)
        return keys, bool(until)

    async def rows(self, query: ExportQuery) -> tuple[list[Kept], bool]:
        return await self._completed(query, self._kept)

    def _kept(self, query: ExportQuery, until: str, connection: sqlite3.Connection) -> tuple[list[Kept], bool]:
        found, more = self._page(query, until, connection)
        return [self._with_columns(values) for values in found], more

    def _with_columns(self, values: Sequence[Any]) -> Kept:
        row, layout = _row(values), self.core.layout
        digest, *kept = values[ROW_COLUMNS:]
        return Kept(row, unsigned(digest), not odd_columns(layout, row, kept))

    def _page(self, query: ExportQuery, until: str, connection: sqlite3.Connection) -> tuple[list[Sequence[Any]], bool]:
        """Return the columns of each row (ROW, the digest, the layout's own, the lease), and whether there may be more
        rows."""
        page: list[Sequence[Any]] = []
        size = 0
        found = self._found(query, connection, self._select(query))
        for values in found:
            if until and values[0].encode() > until.encode():
                found.close()
                return page, True
            if len(page) == query.limit or size >= PULL_BYTES:
                found.close()
                return page, True
            page.append(values)
            size += len(values[ROW_PAYLOAD])
        return page, bool(until)

    def _found(
        self, query: ExportQuery, connection: sqlite3.Connection, select: str
    ) -> Generator[Sequence[Any], None, None]:
        """Yield rows, with one statement for each bucket: each walks its own part of the index, and begins only when
        its rows are needed."""
        in_scope = " AND r.bucket = ?" if query.buckets else ""
        if query.keys:
            in_scope = f" AND r.key IN ({', '.join('?' for _ in query.keys)})"
        if query.parts:
            # SQLite keeps digests as signed integers. The lowest bits are the same.
            in_scope += f" AND r.digest & {PARTS - 1} IN ({', '.join(str(int(part)) for part in query.parts)})"
        of_rule, rule = self._rule(query)
        of_owner = " AND r.owner = ?" if query.owned_only else ""
        owner = (self.core.store.value,) if query.owned_only else ()
        limit = int(query.limit) + 1
        statement = f"{select} WHERE r.key > ?{in_scope}{of_rule}{of_owner} AND {VISIBLE}"
        statement += f" ORDER BY r.key LIMIT {limit}"
        after = query.after
        scopes: list[tuple[Value, ...]] = [(bucket,) for bucket in query.buckets]
        for scope in scopes or [query.keys]:
            with closing(connection.execute(statement, (after, *scope, *rule, *owner))) as cursor:
                yield from cursor
            after = ""

    def _rule(self, query: ExportQuery) -> tuple[str, tuple[Value, ...]]:
        """Return the conditions on names and account, and their parameters."""
        first, beyond = bounds(query.pattern) if query.pattern else ("", "")
        found = [(" AND r.key >= ?", first), (" AND r.key < ?", beyond)]
        if query.account:
            found.append((f" AND r.{self.core.layout.filters[ACCOUNT]} = ?", query.account))
        used = [(condition, value) for condition, value in found if value]
        return "".join(condition for condition, _ in used), tuple(value for _, value in used)

    def _select(self, query: ExportQuery) -> str:
        """Return the SELECT, without the payload if the query does not need it: SQLite may keep it on separate
        pages."""
        rows = self.core.statements.rows
        return rows.replace("r.payload", "x''") if query.keys_only else rows

    async def digests(self, buckets: Sequence[int] = (), *, parts: bool = False) -> list[BucketDigest]:
        self.core.check_complete("a comparison of buckets")
        return await self.core.database.read(partial(self._digests, buckets, PARTS if parts else 0))

    def _digests(self, buckets: Sequence[int], parts: int, connection: sqlite3.Connection) -> list[BucketDigest]:
        some = f" WHERE bucket IN ({', '.join('?' for _ in buckets)})" if buckets else ""
        me = self.core.store.value
        sums: dict[int, list[int]] = {}
        for bucket, owner, digest in connection.execute(self.core.statements.digests + some, tuple(buckets)):
            total = sums.get(bucket)
            if total is None:
                total = sums[bucket] = [0] * (3 + parts)
            total[0] += 1
            total[1] += owner == me
            total[2] ^= digest
            if parts:
                total[3 + digest % PARTS] ^= digest
        return [
            BucketDigest(bucket, records, owned, unsigned(digest), tuple(unsigned(part) for part in own))
            for bucket, (records, owned, digest, *own) in sorted(sums.items())
        ]

    async def counts(self) -> list[BucketDigest]:
        left = await self._left()
        counted = await self.core.database.read(self._counts)
        if not left:
            return counted
        # The buckets of old rows are not known yet. Each bucket gets an equal share, so that no bucket counts as empty.
        share = -(-left // BUCKETS)
        known = {one.bucket: one for one in counted}
        every = [known.get(bucket, BucketDigest(bucket, 0, 0, 0)) for bucket in range(BUCKETS)]
        return [one._replace(records=one.records + share, owned=one.owned + share) for one in every]

    async def _left(self) -> int:
        """Return the number of old rows that are not completed. Call it before the table is counted: a row that is
        completed in between then counts twice instead of not at all."""
        fill = self.core.fill
        return 0 if fill is None else (await self.core.database.read(fill.rows.progress)).left

    def _counts(self, connection: sqlite3.Connection) -> list[BucketDigest]:
        found = connection.execute(self.core.statements.counts, (self.core.store.value,))
        return [BucketDigest(bucket, records, owned, 0) for bucket, records, owned in found]

    async def missing(self, buckets: Sequence[int] = ()) -> list[Missing]:
        return await self.core.database.read(partial(missing, self.core.layout.table, buckets))

    async def connections(self) -> None:
        return None

    async def count_of(self, account: str, most: int) -> int:
        return await self.core.database.read(partial(self._count_of, account, most))

    def _count_of(self, account: str, most: int, connection: sqlite3.Connection) -> int:
        layout, fill = self.core.layout, self.core.fill
        # First the old rows: one that is completed in between then counts twice instead of not at all.
        left = 0 if fill is None else fill.rows.count_of(connection, account, most)
        live = f"SELECT 1 FROM {layout.table} r WHERE r.{layout.filters[ACCOUNT]} = ? AND r.live LIMIT ?"
        found = int(connection.execute(f"SELECT count(*) FROM ({live})", (account, most)).fetchone()[0])
        return min(left + found, most)

    async def census(self) -> Census:
        left = await self._left()
        found = await self.core.database.read(self._census)
        return Census(found.records + left, found.owned_records + left, found.owned_buckets, left)

    def _census(self, connection: sqlite3.Connection) -> Census:
        me = self.core.store.value
        records, owned = connection.execute(self.core.statements.census, (me,)).fetchone()
        (bucket_owners,) = connection.execute("SELECT count(*) FROM bucket WHERE owner = ?", (me,)).fetchone()
        return Census(records, int(owned), bucket_owners)


def _row(values: Sequence[Any]) -> Row:
    row = row_from(values[:ROW_COLUMNS])
    assert row is not None, "no outer join"
    return row


def _with_served(connection: sqlite3.Connection, keys: Sequence[str]) -> set[str]:
    """Return the keys that have served requests. In most pages of a copy they are few, so one query saves many
    others."""
    return {key for (key,) in connection.execute(WITH_SERVED, (json.dumps(keys),))}

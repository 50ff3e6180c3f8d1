"""Inspection of the whole store, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from libs.ownership.model import Record, Row
from libs.ownership.patterns import bounds
from libs.store.connections import ALLOWED, Connections
from libs.store.inspection import PARTS, BucketDigest, Census, ExportQuery, Kept, Missing
from libs.store.limits import PULL_BYTES
from libs.store.window import effects_of, made_by, size_of, windows_of
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import MISSING, MISSING_OF
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import ROW, VISIBLE, is_projected, row_of, unsigned
from services.service_layer.store.postgres_session import MEMBER, MEMBERS, ROLES
from services.service_layer.store.postgres_transaction import served_up_to

_CENSUS_COST_FACTOR = 50.0
_CENSUS_MOST_SECONDS = 10.0
_CONNECTIONS_SECONDS = 5.0
_ALL_ROWS_SECONDS = 25

_DIGESTS = """
SELECT bucket, count(*) AS records, count(*) FILTER (WHERE owner = $1) AS owned, bit_xor(digest) AS digest
FROM record {where} GROUP BY bucket ORDER BY bucket
"""
DIGESTS = _DIGESTS.format(where="WHERE bucket = ANY($2::smallint[])")
ALL_DIGESTS = _DIGESTS.format(where="")
PART_DIGESTS = f"""
SELECT bucket, (digest & {PARTS - 1})::int AS part, bit_xor(digest) AS digest
FROM record WHERE bucket = ANY($1::smallint[]) GROUP BY bucket, part
"""
CENSUS = """
SELECT count(*) AS records, count(*) FILTER (WHERE owner = $1) AS owned,
       (SELECT count(*) FROM bucket WHERE owner = $1) AS bucket_owners FROM record
"""

COUNT_OF_ACCOUNT = "SELECT count(*) FROM (SELECT 1 FROM record r WHERE r.account = $1 AND r.live LIMIT $2) found"


class PostgresInspection:
    """`libs.store.inspection.Inspection`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._census: Census | None = None
        self._valid_until = float("-inf")
        self._connections: Connections | None = None
        self._connections_until = float("-inf")

    async def count_of(self, account: str, most: int) -> int:
        async def work(connection: Connection) -> int:
            return int(await connection.fetchval(COUNT_OF_ACCOUNT, account, most))

        return await self._context.requests.run(work)

    async def connections(self) -> Connections:
        now = asyncio.get_running_loop().time()
        if self._connections is None or now >= self._connections_until:

            async def work(connection: Connection) -> Connections:
                processes = await connection.fetchval(MEMBERS, ROLES, MEMBER)
                allowed = await connection.fetchval(ALLOWED)
                return Connections(self._context.connections, max(processes, 1), allowed)

            self._connections = await self._context.control.run(work)
            self._connections_until = now + _CONNECTIONS_SECONDS
        return self._connections

    async def export(self, query: ExportQuery) -> tuple[list[Record], bool]:
        context = self._context

        async def work(connection: Connection) -> tuple[list[Record], bool]:
            async with transaction(connection, snapshot=True):
                found, more = await self._page(connection, query)
                rows = [row for row, _ in found]
                effects = [] if query.keys_only else effects_of(rows)
                served = windows_of(await served_up_to(connection, effects))
            now = context.clock.now()
            return [Record(row, served.get(row.key, ()), made_by(row), now) for row in rows], more

        records, more = await context.control.run(work)
        size = 0
        for position, record in enumerate(records):
            if size >= PULL_BYTES:
                return records[:position], True
            size += size_of(record)
        return records, more

    async def keys(self, query: ExportQuery) -> tuple[list[str], bool]:
        statement, arguments = _keys(query, self._context.me.value)

        async def work(connection: Connection) -> list[str]:
            return [row["key"] for row in await connection.fetch(statement, *arguments)]

        found = await self._context.control.run(work)
        return found[: query.limit], len(found) > query.limit

    async def rows(self, query: ExportQuery) -> tuple[list[Kept], bool]:
        columns_of = self._context.columns_of

        async def work(connection: Connection) -> tuple[list[Kept], bool]:
            found, more = await self._page(connection, query)
            kept = [Kept(row, unsigned(one["digest"]), is_projected(row, columns_of(row), one)) for row, one in found]
            return kept, more

        return await self._context.control.run(work)

    async def _page(self, connection: Connection, query: ExportQuery) -> tuple[list[tuple[Row, Any]], bool]:
        """Return the rows, each with its stored columns, and whether there are more."""
        statement, arguments = _export(query, self._context.me.value)
        found = await connection.fetch(statement, *arguments)
        rows = [(row, columns) for columns in found if (row := row_of(columns)) is not None][: query.limit]
        return rows, bool(found) and found[0]["total"] > len(rows)

    async def digests(self, buckets: Sequence[int] = (), *, parts: bool = False) -> list[BucketDigest]:
        me = self._context.me.value

        async def work(connection: Connection) -> list[BucketDigest]:
            if not buckets:
                rows = await _fetch_all(connection, ALL_DIGESTS, me)
                return [_digest_of(row) for row in rows]
            if not parts:
                return [_digest_of(row) for row in await connection.fetch(DIGESTS, me, list(buckets))]
            async with transaction(connection, snapshot=True):
                rows = await connection.fetch(DIGESTS, me, list(buckets))
                found = await connection.fetch(PART_DIGESTS, list(buckets))
            sums = {row["bucket"]: [0] * PARTS for row in rows}
            for row in found:
                sums[row["bucket"]][row["part"]] = unsigned(row["digest"])
            return [_digest_of(row)._replace(parts=tuple(sums[row["bucket"]])) for row in rows]

        return await self._context.control.run(work)

    async def counts(self) -> list[BucketDigest]:
        return [one._replace(digest=0) for one in await self.digests()]

    async def missing(self, buckets: Sequence[int] = ()) -> list[Missing]:
        async def work(connection: Connection) -> list[Missing]:
            if buckets:
                return [Missing(*row) for row in await connection.fetch(MISSING_OF, list(buckets))]
            return [Missing(*row) for row in await _fetch_all(connection, MISSING)]

        return await self._context.control.run(work)

    async def census(self) -> Census:
        """Count the rows, or return a count at most fifty times as old as it took, and at most ten seconds. A count
        that takes under 50 ms is not reused."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._census is None or began >= self._valid_until:

            async def work(connection: Connection) -> Census:
                (counts,) = await _fetch_all(connection, CENSUS, self._context.me.value)
                return Census(*counts)

            self._census = await self._context.control.run(work)
            cost = loop.time() - began
            keep = cost * _CENSUS_COST_FACTOR if cost > 0.05 else 0.0
            self._valid_until = loop.time() + min(keep, _CENSUS_MOST_SECONDS)
        return self._census


def _digest_of(row: Any) -> BucketDigest:
    return BucketDigest(row["bucket"], row["records"], row["owned"], unsigned(row["digest"]))


async def _fetch_all(connection: Connection, statement: str, *arguments: object) -> list[Any]:
    """Run a statement that reads every row: allow a sequential scan and a longer timeout."""
    async with transaction(connection):
        await connection.execute(f"SET LOCAL enable_seqscan = on; SET LOCAL statement_timeout = '{_ALL_ROWS_SECONDS}s'")
        return list(await connection.fetch(statement, *arguments, timeout=_ALL_ROWS_SECONDS + 1))


def _keys(query: ExportQuery, me: str) -> tuple[str, list[object]]:
    """Build the query of keys. It reads one beyond the limit."""
    conditions, order, arguments = _selection(query, me)
    return f"SELECT r.key FROM record r WHERE {conditions} ORDER BY {order} LIMIT $2", arguments


def _export(query: ExportQuery, me: str) -> tuple[str, list[object]]:
    """Build the query. It reads one row beyond the limit, to detect that there are more, and bounds the payloads."""
    conditions, order, arguments = _selection(query, me)
    columns = f"{ROW}, r.digest, r.state, r.account, r.labels::text AS labels, r.lease"
    rows = f"SELECT * FROM record r WHERE {conditions} ORDER BY {order} LIMIT $2"
    if query.keys_only:
        columns = columns.replace("r.payload", "''::bytea AS payload")
        return f"SELECT {columns}, count(*) OVER () AS total FROM ({rows}) r ORDER BY {order}", arguments
    arguments.append(PULL_BYTES)
    earlier = f"ORDER BY {order} ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW"
    before = f"coalesce(sum(octet_length(r.payload)) OVER ({earlier}), 0)"
    return (
        f"SELECT {columns}, r.total FROM (SELECT r.*, {before} AS before, count(*) OVER () AS total"
        f" FROM ({rows}) r) r WHERE r.before < ${len(arguments)} ORDER BY {order}",
        arguments,
    )


def _selection(query: ExportQuery, me: str) -> tuple[str, str, list[object]]:
    """Return the condition of the rows, their order, and the parameters of both. $2 is one more than the limit."""
    conditions, order = ["r.key > $1"], "r.key"
    arguments: list[object] = [query.after, query.limit + 1]
    if query.buckets:
        # Both conditions follow the index, so the query reads no more rows than requested.
        conditions, order = (
            ["r.bucket = ANY($3::smallint[])", "(r.bucket, r.key) > ($4::smallint, $1)"],
            "r.bucket, r.key",
        )
        arguments += [list(query.buckets), query.buckets[0]]
    if query.keys:
        conditions.append("r.key = ANY($3::text[])")
        arguments.append(list(query.keys))
    if query.parts:
        arguments.append(list(query.parts))
        conditions.append(f"r.digest & {PARTS - 1} = ANY(${len(arguments)}::bigint[])")
    if query.pattern:
        for bound, comparison in zip(bounds(query.pattern), (">=", "<"), strict=True):
            if bound:
                arguments.append(bound)
                conditions.append(f"r.key {comparison} ${len(arguments)}")
    if query.account:
        arguments.append(query.account)
        conditions.append(f"r.account = ${len(arguments)}")
    if query.owned_only:
        arguments.append(me)
        conditions.append(f"r.owner = ${len(arguments)}")
    return " AND ".join([*conditions, VISIBLE]), order, arguments

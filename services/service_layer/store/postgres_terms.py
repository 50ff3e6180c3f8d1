"""The journal of conflicts, on PostgreSQL.

A seizure locks its bucket's row first. So it waits for creates and applies in that bucket, which hold that row. Then it
locks the bucket's records. Every later transaction sees the new term.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.ownership.model import Version
from libs.store.engine_ports import EngineSeizures
from libs.store.recovery import Conflict, Why
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_transaction import PostgresTransactions

_CONFLICTS = "SELECT key, term, revision, why, event, resolution FROM conflict ORDER BY resolution <> '', id LIMIT $1"
_RESOLVE = (
    "UPDATE conflict SET resolution = $4 WHERE key = $1 AND term = $2 AND revision = $3"
    " AND resolution = '' AND $4 <> '' RETURNING 1"
)


class PostgresSeizures(EngineSeizures):
    """`libs.store.recovery.Seizures`."""

    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        super().__init__(transactions)
        self._context = context

    async def conflicts(self, limit: int) -> list[Conflict]:
        async def work(connection: Connection) -> list[Conflict]:
            return [
                Conflict(
                    row["key"],
                    Version(row["term"], row["revision"]),
                    Why(row["why"]),
                    row["event"],
                    row["resolution"],
                )
                for row in await connection.fetch(_CONFLICTS, limit)
            ]

        return await self._context.control.run(work)

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        async def work(connection: Connection) -> set[int]:
            return {row["bucket"] for row in await connection.fetch(sql.DISPUTED_BUCKETS)}

        found = await self._context.control.run(work)
        return found.intersection(buckets) if buckets else found

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        async def work(connection: Connection) -> bool:
            return await connection.fetchval(_RESOLVE, key, *version, resolution) is not None

        return await self._context.control.run(work)

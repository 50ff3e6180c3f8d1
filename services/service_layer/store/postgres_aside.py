"""Events set aside by a store on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Version
from libs.store.aside import MAX_ASIDE, AsideEntry, Refusal
from libs.store.outbox import ChangeEntry
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_rows import columnar

_SET_ASIDE = """
WITH n AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) n(key, term, revision, reason)
           LIMIT greatest(0, $5::bigint - (SELECT count(*) FROM aside))),
d AS (DELETE FROM outbox o USING n WHERE o.key = n.key AND o.term = n.term AND o.revision = n.revision
      RETURNING o.key, o.term, o.revision, o.event, o.bytes, o.traceparent, o.tick, n.reason),
i AS (INSERT INTO aside (key, term, revision, event, traceparent, tick, reason)
      SELECT key, term, revision, event, traceparent, tick, reason FROM d ON CONFLICT DO NOTHING)
SELECT key, term, revision, bytes FROM d
"""
_ENTRIES = "SELECT key, term, revision, event, traceparent, reason FROM aside ORDER BY id LIMIT $1"
_REMOVE = """
DELETE FROM aside a USING unnest($1::text[], $2::bigint[], $3::bigint[]) n(key, term, revision)
WHERE a.key = n.key AND a.term = n.term AND a.revision = n.revision RETURNING 1
"""
_PRUNE = f"""
DELETE FROM aside a WHERE a.tick < {sql.NOW} - $1
  AND EXISTS (SELECT FROM record r WHERE r.key = a.key AND (r.term, r.revision) > (a.term, a.revision))
  AND NOT EXISTS (SELECT FROM outbox o WHERE o.key = a.key)
  AND NOT EXISTS (SELECT FROM aside n WHERE n.key = a.key AND n.id <> a.id) RETURNING 1
"""


class PostgresAside:
    """`libs.store.aside.Aside`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def set_aside(self, refusals: Sequence[Refusal]) -> list[tuple[str, Version]]:
        rows = [(one.key, *one.version, one.reason) for one in refusals]
        moved = await self._fetch(_SET_ASIDE, *columnar(rows, 4), MAX_ASIDE)
        self._context.gauge.removed(len(moved), sum(row["bytes"] for row in moved))
        return [(row["key"], Version(row["term"], row["revision"])) for row in moved]

    async def entries(self, limit: int) -> list[AsideEntry]:
        return [
            AsideEntry(
                ChangeEntry(row["key"], Version(row["term"], row["revision"]), row["event"], row["traceparent"]),
                row["reason"],
            )
            for row in await self._fetch(_ENTRIES, limit)
        ]

    async def count(self) -> int:
        (row,) = await self._fetch("SELECT count(*) AS entries FROM aside")
        return int(row["entries"])

    async def remove(self, changes: Sequence[tuple[str, Version]]) -> int:
        return len(await self._fetch(_REMOVE, *columnar([(key, *version) for key, version in changes], 3)))

    async def prune(self) -> int:
        return len(await self._fetch(_PRUNE, RETRY_WINDOW_SECONDS * 1000))

    async def _fetch(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        async def work(connection: Connection) -> list[dict[str, Any]]:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]

        return await self._context.apply.run(work)

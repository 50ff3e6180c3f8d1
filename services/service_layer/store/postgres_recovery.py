"""Recognising the loss of a store on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from libs.store.recovery import Identity, Standing, StillHidden
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import COUNT_NOW
from services.service_layer.store.postgres_place import PLACE, Anchor
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import columnar

HIDDEN = "FROM bucket b JOIN record r ON r.bucket = b.bucket AND r.term < b.term WHERE b.term > 0"

_STANDING = "SELECT *, (SELECT count(*) FROM conflict WHERE resolution = '') AS conflicts FROM standing"
_FENCE = "UPDATE standing SET gone = $1 WHERE gone = ''"
_REOPEN = (
    f"UPDATE standing s SET gone = '', place = {PLACE},"
    # What a database that went back calls its transactions was said before, of others: no place of a watch is known.
    " watched = CASE WHEN gone = '' THEN watched ELSE gen_random_uuid() END"
    f" WHERE NOT EXISTS (SELECT {HIDDEN}) RETURNING 1"
)
_NOTE_OTHER = (
    "UPDATE standing SET other_place = $1, other_changes = $2"
    " WHERE $3 OR other_place IS NULL OR (other_place = $1 AND other_changes < $2)"
)
_SKIP_TO = (
    "INSERT INTO progress AS p (part, next) SELECT * FROM unnest($1::integer[], $2::bigint[])"
    " ON CONFLICT (part) DO UPDATE SET next = excluded.next, mark = '' WHERE excluded.next > p.next"
)


class PostgresRecovery:
    """`libs.store.recovery.Recovery`."""

    def __init__(self, context: Context, anchor: Anchor) -> None:
        self._pool = context.control
        self._anchor = anchor

    async def standing(self) -> Standing:
        async def work(connection: Connection) -> Standing:
            now = await self._anchor.ask(connection)
            row = await connection.fetchrow(_STANDING)
            other = None if row["other_place"] is None else Identity(row["other_place"], row["other_changes"])
            return Standing(now, row["place"], row["gone"], other, row["conflicts"])

        return await self._pool.run(work)

    async def fence(self, reason: str) -> None:
        await self._run(_FENCE, reason)

    async def reopen(self) -> None:
        async def work(connection: Connection) -> None:
            async with transaction(connection):
                if await connection.fetchval(_REOPEN) is None:
                    raise StillHidden
                await connection.execute(COUNT_NOW)

        await self._pool.run(work)

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        await self._run(_NOTE_OTHER, *other, anew)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        await self._run(_SKIP_TO, *columnar(sorted(next_offsets.items()), 2))

    async def _run(self, statement: str, *arguments: object) -> int:
        async def work(connection: Connection) -> int:
            return len(await connection.fetch(statement, *arguments))

        return await self._pool.run(work)

"""Recognising the loss of a store on PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from libs.ownership.orders import Order, check_order, order_of, order_text
from libs.store.recovery import FencedAt, Identity, Standing, StillHidden
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import count_now
from services.service_layer.store.postgres_place import PLACE, Anchor
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import columnar

HIDDEN = "FROM bucket b JOIN record r ON r.bucket = b.bucket AND r.term < b.term WHERE b.term > 0"

_STANDING = "SELECT *, (SELECT count(*) FROM conflict WHERE resolution = '') AS conflicts FROM standing"
_HELD = "SELECT * FROM standing FOR UPDATE"
_FENCE = "UPDATE standing SET gone = CASE WHEN gone = '' THEN $1 ELSE gone END, recovery_order = $2, fenced_at = $3"
_ORDER = "UPDATE standing SET recovery_order = $1"
_VOUCH = "UPDATE standing SET fenced_at = $1"
_REOPEN = (
    f"UPDATE standing s SET gone = '', fenced_at = '', recovery_order = $1, place = {PLACE},"
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


def _taken(row: Any, order: Order | None) -> str:
    """What the store keeps; None: no order of a recovery. Raises LateOrder, ForeignControl."""
    if order is None:
        return str(row["recovery_order"])
    check_order(order_of(row["recovery_order"]), order)
    return order_text(order)


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
            order, fenced_at = order_of(row["recovery_order"]), FencedAt.decode(row["fenced_at"])
            return Standing(now, row["place"], row["gone"], other, row["conflicts"], order, fenced_at)

        return await self._pool.run(work)

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        async def work(connection: Connection, row: Any) -> None:
            kept = _taken(row, order)
            fenced_at = "" if since is None else row["fenced_at"]
            if since is not None and not row["gone"]:
                fenced_at = FencedAt((await self._anchor.ask(connection)).changes, since).encode()
            await connection.execute(_FENCE, reason, kept, fenced_at)

        await self._hold(work)

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        async def work(connection: Connection, row: Any) -> None:
            if seen is not None:
                seen.check_fence(row["gone"], by_admission=bool(row["fenced_at"]))
            if not await connection.fetch(_REOPEN, _taken(row, order)):
                raise StillHidden
            await count_now(connection)

        await self._hold(work)

    async def take_order(self, order: Order) -> None:
        async def work(connection: Connection, row: Any) -> None:
            await connection.execute(_ORDER, _taken(row, order))

        await self._hold(work)

    async def vouch(self, changes: int) -> None:
        async def work(connection: Connection, row: Any) -> None:
            known = FencedAt.decode(row["fenced_at"])
            if known is not None and changes > known.changes:
                await connection.execute(_VOUCH, FencedAt(changes, known.next_offsets).encode())

        await self._hold(work)

    async def _hold(self, change: Callable[[Connection, Any], Awaitable[None]]) -> None:
        """One transaction that holds the row: of two orders at once the second one sees the first."""

        async def work(connection: Connection) -> None:
            async with transaction(connection):
                await change(connection, await connection.fetchrow(_HELD))

        await self._pool.run(work)

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        await self._run(_NOTE_OTHER, *other, anew)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        await self._run(_SKIP_TO, *columnar(sorted(next_offsets.items()), 2))

    async def _run(self, statement: str, *arguments: object) -> int:
        async def work(connection: Connection) -> int:
            return len(await connection.fetch(statement, *arguments))

        return await self._pool.run(work)

"""The feed's position in the log, and upkeep, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Record
from libs.store import engine_apply
from libs.store.limits import PRUNE_ROWS
from libs.store.port import Applied, FeedState, Parked
from libs.store.transaction import Lane
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import removing
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import columnar
from services.service_layer.store.postgres_session import Session
from services.service_layer.store.postgres_transaction import PostgresTransactions, changed
from services.service_layer.store.postgres_transfers import apply

_CLAIM_SECONDS = 0.5
"""Time for which a claim's answer is reused without a query."""

_STATE = (
    "SELECT part, next, mark, applied, old, parked, journaled, p.unauthenticated, start, n.*"
    " FROM (SELECT count(*) AS parked_now,"
    " count(*) FILTER (WHERE unauthenticated) AS unauthenticated_now FROM parked) n"
    " CROSS JOIN (progress p FULL JOIN checked_from c USING (part)) ORDER BY part"
)
_COUNTERS = ("applied", "old", "parked", "journaled", "unauthenticated")
_FIND = "SELECT part, place, key, reason, event, headers, topic, unauthenticated FROM parked"
_PARKED = f"{_FIND} WHERE $2::int IS NULL OR part = $2 AND place = $3 ORDER BY id LIMIT $1"
_PARKED_AFTER = f"{_FIND} WHERE (part, place) > ($2::int, $3::bigint) ORDER BY part, place LIMIT $1"
_RESTART = (
    "INSERT INTO progress AS p (part, next) SELECT * FROM unnest($1::integer[], $2::bigint[])"
    " ON CONFLICT (part) DO UPDATE SET next = excluded.next, mark = ''"
)
_START_CHECKING = (
    "INSERT INTO checked_from (part, start) SELECT * FROM unnest($1::integer[], $2::bigint[])"
    " WHERE NOT EXISTS (SELECT 1 FROM checked_from) ON CONFLICT DO NOTHING"
)
_CHECKED = "SELECT part, start FROM checked_from"
_PRUNE = f"""
DELETE FROM served WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM served WHERE tick < {sql.NOW} - $1 ORDER BY tick LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING 1
"""


class PostgresFeed:
    """`libs.store.port.Feed`."""

    def __init__(self, context: Context, transactions: PostgresTransactions, session: Session) -> None:
        self._context = context
        self._transactions = transactions
        self._session = session
        self._claimed: Sequence[int] = ()
        self._asked = (0, float("-inf"))

    async def state(self) -> FeedState:
        async def work(connection: Connection) -> FeedState:
            rows = await connection.fetch(_STATE)
            known = [row for row in rows if row["next"] is not None]
            return FeedState(
                next_offsets={row["part"]: row["next"] for row in known},
                marks={row["part"]: row["mark"] for row in known},
                **{name: sum(row[name] for row in known) for name in _COUNTERS},
                parked_now=max((row["parked_now"] for row in rows), default=0),
                unauthenticated_now=max((row["unauthenticated_now"] for row in rows), default=0),
                checked_from={row["part"]: row["start"] for row in rows if row["start"] is not None},
            )

        return await self._context.control.run(work)

    async def parked(self, limit: int, position: tuple[int, int] | None = None) -> list[Parked]:
        return await self._parked(_PARKED, limit, *(position or (None, None)))

    async def parked_after(self, position: tuple[int, int], limit: int) -> list[Parked]:
        return await self._parked(_PARKED_AFTER, limit, *position)

    async def _parked(self, statement: str, *arguments: int | None) -> list[Parked]:
        async def work(connection: Connection) -> list[Parked]:
            return [Parked(*row) for row in await connection.fetch(statement, *arguments)]

        return await self._context.control.run(work)

    async def unpark(self, partition: int, offset: int, record: Record) -> Applied:
        unpark = partial(engine_apply.unpark, partition=partition, offset=offset, record=record, by=apply)
        return await self._transactions.run(unpark, Lane.FEED)

    async def drop(self, partition: int, offset: int) -> bool:
        async def work(connection: Connection) -> bool:
            return await connection.fetchval(sql.UNPARK, partition, offset) is not None

        return await self._context.apply.run(work)

    async def drop_unauthenticated(self) -> int:
        async def work(connection: Connection) -> int:
            return changed(await connection.execute("DELETE FROM parked WHERE unauthenticated"))

        return await self._context.apply.run(work)

    async def restart(self, next_offsets: Mapping[int, int]) -> None:
        async def work(connection: Connection) -> None:
            async with transaction(connection):
                # A process that still applies the former log then moves no position: `next` differs from its value.
                await connection.execute("UPDATE progress SET next = 0, mark = ''")
                await connection.execute(_RESTART, *columnar(sorted(next_offsets.items()), 2))
                await connection.execute("UPDATE checked_from SET start = 0")

        await self._context.apply.run(work)

    async def start_checking(self, offsets: Mapping[int, int]) -> Mapping[int, int]:
        async def work(connection: Connection) -> Mapping[int, int]:
            async with transaction(connection):
                await connection.execute(_START_CHECKING, *columnar(sorted(offsets.items()), 2))
                return {row["part"]: row["start"] for row in await connection.fetch(_CHECKED)}

        return await self._context.apply.run(work)

    async def stop_checking(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute("DELETE FROM checked_from")

        await self._context.apply.run(work)

    async def claim(self, partitions: int) -> Sequence[int]:
        asked, until = self._asked
        now = asyncio.get_running_loop().time()
        if asked != partitions or now >= until:
            self._claimed = ()
            self._claimed = await self._session.claim(partitions)
            self._asked = partitions, now + _CLAIM_SECONDS
        return self._claimed


class PostgresUpkeep:
    """`libs.store.port.Upkeep`."""

    def __init__(self, context: Context, session: Session) -> None:
        self._context = context
        self._session = session

    async def tick(self, elapsed_seconds: float) -> None:
        await self._session.tick(elapsed_seconds)

    async def prune(self) -> int:
        async def work(connection: Connection) -> int:
            async with transaction(connection), removing(connection, "served"):
                return len(await connection.fetch(_PRUNE, RETRY_WINDOW_SECONDS * 1000, PRUNE_ROWS))

        return await self._context.apply.run(work)

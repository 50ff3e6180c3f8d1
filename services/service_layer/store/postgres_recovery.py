"""Detection of a store's loss, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from libs.ownership.orders import Order
from libs.store.engine_ports import EngineRecovery
from libs.store.recovery import Standing
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_rows import columnar
from services.service_layer.store.postgres_transaction import PostgresTransactions, standing_of

_SKIP_TO = (
    "INSERT INTO progress AS p (part, next) SELECT * FROM unnest($1::integer[], $2::bigint[])"
    " ON CONFLICT (part) DO UPDATE SET next = excluded.next, mark = '' WHERE excluded.next > p.next"
)

_WRITERS_END = ("LOCK TABLE record IN SHARE MODE", "LOCK TABLE bucket IN SHARE MODE")
"""SHARE is the weakest mode that waits for every transaction that has changed a row of the table."""

_WRITERS_SECONDS = 4.0
"""Maximum wait for the writers of one table. A writer's statement waits for a row's lock for 1 s at most."""


class PostgresRecovery(EngineRecovery):
    """`libs.store.recovery.Recovery`."""

    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        super().__init__(transactions)
        self._context = context

    async def standing(self) -> Standing:
        async def work(connection: Connection) -> Standing:
            return await standing_of(self._context, connection, sql.STANDING)

        return await self._context.control.run(work)

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        """See `libs.store.recovery.Recovery.fence`. Returns once no write that began before the fence can commit.

        A statement reads the fence in its own snapshot. One that began before the fence and waits for a row's lock
        would change the row after it. Raises LockTimeout if such writers do not end: the store is fenced then, and a
        repeated call waits again.
        """
        await super().fence(reason, order=order, since=since)

        async def work(connection: Connection) -> None:
            for statement in _WRITERS_END:
                # One table at a time: two tables in one transaction could end in a deadlock with a writer.
                async with transaction(connection, lock_timeout_seconds=_WRITERS_SECONDS):
                    await connection.execute(statement)

        await self._context.control.run(work)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_SKIP_TO, *columnar(sorted(next_offsets.items()), 2))

        await self._context.control.run(work)

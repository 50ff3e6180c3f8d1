"""Detection of a store's loss, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from libs.store.engine_ports import EngineRecovery
from libs.store.recovery import Standing
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_rows import columnar
from services.service_layer.store.postgres_transaction import PostgresTransactions, standing_of

_SKIP_TO = (
    "INSERT INTO progress AS p (part, next) SELECT * FROM unnest($1::integer[], $2::bigint[])"
    " ON CONFLICT (part) DO UPDATE SET next = excluded.next, mark = '' WHERE excluded.next > p.next"
)


class PostgresRecovery(EngineRecovery):
    """`libs.store.recovery.Recovery`."""

    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        super().__init__(transactions)
        self._context = context

    async def standing(self) -> Standing:
        async def work(connection: Connection) -> Standing:
            return await standing_of(self._context, connection, sql.STANDING)

        return await self._context.control.run(work)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_SKIP_TO, *columnar(sorted(next_offsets.items()), 2))

        await self._context.control.run(work)

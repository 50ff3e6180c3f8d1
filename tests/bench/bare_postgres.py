"""The statements of the store on PostgreSQL, prepared on bare asyncpg connections, with parameters made in advance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import asyncpg

from libs.ownership.model import Record, bucket_of
from libs.sandboxes.columns import sandbox_columns
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_rows import columnar, record_values, served_values
from tests.bench.measure import Round
from tests.bench.prepared import Change

SETTINGS = {
    "synchronous_commit": "on",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""The settings of the store's connections."""
_RECORD_WIDTH = 16
_SERVED_WIDTH = 7

Steps = tuple[tuple[object, ...], tuple[object, ...]]


def steps_of(change: Change) -> Steps:
    """The parameters of the read and of the write."""
    call, row, served = change.call, change.changed.row, change.changed.served
    bucket = bucket_of(call.key)
    values = record_values(row, bucket, sandbox_columns(row))
    request = (*served_values(served)[:3], served.answer)
    write = (*values, *request, change.event, call.traceparent, row.owner.value, *change.before)
    return (call.key, bucket, call.request_id), write


class BarePostgres:
    """Connections that each do one write at a time."""

    def __init__(self, connections: Sequence[tuple[Any, Any, Any]]) -> None:
        self._connections = connections

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, connections: int) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            opened = []
            for _ in range(connections):
                connection = await asyncpg.connect(dsn, server_settings=SETTINGS)
                stack.push_async_callback(connection.close)
                find, update = await connection.prepare(sql.READ_FOR_WRITE), await connection.prepare(sql.UPDATE)
                opened.append((connection, find, update))
            yield cls(opened)

    async def write(self, changes: Sequence[Change], in_flight: int) -> Round:
        """Write the changes. `in_flight`: number of concurrent connections, at most those that are open."""
        waiting = iter([steps_of(change) for change in changes])
        milliseconds: list[float] = []
        began = time.perf_counter()
        await asyncio.gather(
            *(_work(find, update, waiting, milliseconds) for _, find, update in self._connections[:in_flight])
        )
        return Round(time.perf_counter() - began, milliseconds)

    async def upsert(self, records: Sequence[Record], batch: int) -> float:
        """Write all records to an empty table, one transaction per batch. Returns the seconds, without the time to make
        the parameters."""
        connection = self._connections[0][0]
        rows = [record_values(one.row, bucket_of(one.row.key), sandbox_columns(one.row)) for one in records]
        batches = [columnar(rows[start : start + batch], _RECORD_WIDTH) for start in range(0, len(rows), batch)]
        await connection.execute(
            "SET session_replication_role = replica; TRUNCATE record, row_count; RESET session_replication_role"
        )
        began = time.perf_counter()
        for columns in batches:
            await connection.fetchval(sql.APPLY_WITH_SERVED, *columns, *columnar([], _SERVED_WIDTH))
        return time.perf_counter() - began


async def _work(find: Any, update: Any, waiting: Iterator[Steps], milliseconds: list[float]) -> None:
    for keys, values in waiting:
        at = time.perf_counter()
        await find.fetchrow(*keys)
        if await update.fetchrow(*values) is None:
            raise RuntimeError(f"{keys[0]} was not written: it has another version")
        milliseconds.append((time.perf_counter() - at) * 1000)

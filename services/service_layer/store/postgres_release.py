"""Release of records, on PostgreSQL: of one record in two round trips, of many in chunks.

A chunk is one transaction. It skips rows that another transaction has locked; these are released one by one afterwards,
each with a bounded wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

from libs.errors import LockTimeout
from libs.ownership.limits import RELEASE_ANSWER_BYTES, RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import Found, Served, Store, Version, bucket_of
from libs.store import engine
from libs.store.port import Released, ReleaseResult
from libs.store.window import ENVELOPE_BYTES, newest, size_of
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection
from services.service_layer.store.postgres_rows import found_of, signed
from services.service_layer.store.postgres_transaction import PostgresTransaction, PostgresTransactions

CHUNK_KEYS = 200
LOCK_SECONDS = 0.3

_SIZES = f"""
SELECT r.key, octet_length(r.payload) + {ENVELOPE_BYTES} + coalesce(s.bytes, 0) AS bytes
FROM record r CROSS JOIN LATERAL (
  SELECT sum(coalesce(octet_length(answer), 0) + {ENVELOPE_BYTES}) AS bytes FROM (
    SELECT answer FROM served i WHERE i.key = r.key AND i.tick >= {sql.NOW} - $2
    ORDER BY i.term DESC, i.revision DESC LIMIT $3) newest
) s WHERE r.key = ANY($1::text[])
"""


class Releases:
    def __init__(self, context: Context, transactions: PostgresTransactions) -> None:
        self._context = context
        self._transactions = transactions

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        """See `libs.store.port.Transfers.release`."""
        results: list[ReleaseResult] = []
        room = RELEASE_ANSWER_BYTES
        while len(results) < len(keys) and room > 0:
            position = len(results)
            chunk = await self._fitting(keys[position : position + CHUNK_KEYS], room)
            done = await self._chunk(list(dict.fromkeys(chunk)), engine.ReleaseOrder(to, create, room, wait=False))
            results += [done[key] for key in takewhile(done.__contains__, chunk)]
            room -= sum(size_of(result.record) for result in done.values() if result.record is not None)
        return Released(tuple(results), tuple(keys[len(results) :]))

    async def _fitting(self, keys: Sequence[str], size: int) -> Sequence[str]:
        """Return the first keys whose rows fill the answer, so that no row beyond it is read."""
        if len(keys) == 1:
            return keys

        async def work(connection: Connection) -> dict[str, int]:
            rows = await connection.fetch(_SIZES, list(keys), RETRY_WINDOW_SECONDS * 1000, SERVED_WINDOW)
            return {row["key"]: int(row["bytes"]) for row in rows}

        sizes = await self._context.requests.run(work)
        for position, key in enumerate(keys):
            if size <= 0:
                return keys[:position]
            size -= sizes.get(key, 0)
        return keys

    async def _chunk(self, keys: Sequence[str], order: engine.ReleaseOrder) -> dict[str, ReleaseResult]:
        """Return the results of the first keys: of all keys, unless the answer fills up earlier."""
        if len(keys) == 1:
            return {keys[0]: await self._one(keys[0], order)}
        release = partial(engine.release, keys=keys, order=order)
        found = await self._transactions.run(release, lock_timeout_seconds=LOCK_SECONDS)
        done = {one.key: one for one in found}
        is_full = sum(size_of(one.record) for one in found if one.record is not None) >= order.room
        last = max((keys.index(key) for key in done), default=-1)
        for key in keys[: last + 1] if is_full else keys:
            if key not in done:
                done[key] = await self._one(key, order)
        return done

    async def _one(self, key: str, order: engine.ReleaseOrder) -> ReleaseResult:
        if (done := await self._context.requests.run(partial(self._at_once, key, order))) is not None:
            return done
        release = partial(engine.release, keys=[key], order=replace(order, wait=True))
        try:
            (result,) = await self._transactions.run(release, lock_timeout_seconds=LOCK_SECONDS)
        except LockTimeout:
            return await self._busy(key)
        return result

    async def _at_once(self, key: str, order: engine.ReleaseOrder, connection: Connection) -> ReleaseResult | None:
        """Release a record in two round trips: a read, and one statement that holds the conditions of the release.

        A client waits for most releases of one record. None, without a change, if the record is busy, has changed
        since the read, is created, or was seized: then a transaction is needed.
        """
        context = self._context
        limits = RETRY_WINDOW_SECONDS * 1000, SERVED_WINDOW
        columns = await connection.fetchrow(sql.READ_FOR_RELEASE, key, bucket_of(key), *limits)
        found = found_of(key, columns)
        if found.row is None or found.row.bases:
            return None
        served = newest(
            Served(principal, request_id, request_hash, Version(*version), answer)
            for principal, request_id, request_hash, version, answer in columns["served"]
        )
        result, entry = engine.decide_one(PostgresTransaction(context, connection), found, served, order)
        if entry is None or result.record is None:
            return result
        depth = await context.gauge.recent()
        if context.limits.is_near(depth, 1, len(entry.event)):
            return None
        row = result.record.row
        after, before = (key, row.owner.value, *row.version, signed(row.digest)), (context.me.value, *found.version)
        if await connection.fetchrow(sql.RELEASE, *after, *before, entry.event) is None:
            return None
        context.gauge.added(1, len(entry.event))
        context.written.notify()
        return result

    async def _busy(self, key: str) -> ReleaseResult:
        async def work(connection: Connection) -> Found:
            return found_of(key, await connection.fetchrow(sql.READ, key, bucket_of(key)))

        return ReleaseResult(key, None, None, (await self._context.requests.run(work)).bucket_owner)

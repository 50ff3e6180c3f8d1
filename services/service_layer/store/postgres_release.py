"""Giving records up, many at a time, on PostgreSQL.

A chunk is one transaction: lock the rows, then read the requests that they served, then commit rows and events. Rows
that somebody else holds are passed by, and tried one by one afterwards, with a bounded wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from libs.errors import LockTimeout
from libs.ownership.limits import MAX_EVENT_BYTES, RELEASE_ANSWER_BYTES, RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import Found, Record, Row, Served, Store, bucket_of
from libs.ownership.rules import Outcome, decide_release
from libs.ownership.terms import contained
from libs.ownership.wire import event_of
from libs.store.limits import HELD_NOTHING, Held
from libs.store.port import Depth, Released, ReleaseResult
from libs.store.window import ENVELOPE_BYTES, made_by, size_of
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_errors import StartAgain
from services.service_layer.store.postgres_pool import Connection, Work, transaction
from services.service_layer.store.postgres_records import check_open, store_change, stub_arguments
from services.service_layer.store.postgres_rows import columnar, found_of, served_of, signed

CHUNK_KEYS = 200
LOCK_SECONDS = 0.3
_STUB_ATTEMPTS = 3

_SIZES = f"""
SELECT r.key, octet_length(r.payload) + {ENVELOPE_BYTES} + coalesce(s.bytes, 0) AS bytes
FROM record r CROSS JOIN LATERAL (
  SELECT sum(coalesce(octet_length(answer), 0) + {ENVELOPE_BYTES}) AS bytes FROM (
    SELECT answer FROM served i WHERE i.key = r.key AND i.tick >= {sql.NOW} - $2
    ORDER BY i.term DESC, i.revision DESC LIMIT $3) newest
) s WHERE r.key = ANY($1::text[])
"""


@dataclass(slots=True)
class _Chunk:
    """What one transaction made of its keys."""

    results: dict[str, ReleaseResult] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    stubs: list[tuple[Found, Row]] = field(default_factory=list)
    released: list[tuple[Row, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for, how full the outbox was then, and how much the store held."""

    to: Store
    create: bool
    depth: Depth
    held: Held


class Releases:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        """See `libs.store.port.Transfers.release`."""
        if to is self._context.me:
            raise ValueError(f"store {to} cannot release to itself")
        results: list[ReleaseResult] = []
        size = 0
        while len(results) < len(keys) and size < RELEASE_ANSWER_BYTES:
            position = len(results)
            chunk = await self._fitting(keys[position : position + CHUNK_KEYS], RELEASE_ANSWER_BYTES - size)
            done = await self._chunk(chunk, await self._order(to, create, len(chunk)))
            results += [done[key] for key in chunk]
            size += sum(size_of(result.record) for result in done.values() if result.record is not None)
        return Released(tuple(results), tuple(keys[len(results) :]))

    async def _order(self, to: Store, create: bool, entries: int) -> _Order:
        gauge = self._context.gauge
        depth = await gauge.nearly()
        near = self._context.limits.is_near(depth, entries, entries * MAX_EVENT_BYTES)
        return _Order(to, create, depth, await gauge.held() if near else HELD_NOTHING)

    async def _fitting(self, keys: Sequence[str], size: int) -> Sequence[str]:
        """As many of the keys as fill the answer, so that a chunk of large rows is not read in vain."""
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

    async def _chunk(self, keys: Sequence[str], order: _Order) -> dict[str, ReleaseResult]:
        asked = list(dict.fromkeys(keys))
        if len(asked) == 1:
            return {asked[0]: await self._one(asked[0], order)}

        async def work(connection: Connection) -> _Chunk:
            return await self._transaction(connection, asked, order, wait=False)

        chunk = await self._run(work, order)
        for key in chunk.busy:
            chunk.results[key] = await self._one(key, order)
        return chunk.results

    async def _one(self, key: str, order: _Order) -> ReleaseResult:
        async def work(connection: Connection) -> _Chunk:
            return await self._transaction(connection, [key], order, wait=True)

        try:
            for _ in range(_STUB_ATTEMPTS):
                chunk = await self._run(work, order)
                if key in chunk.results:
                    return chunk.results[key]
        except LockTimeout:
            pass
        return await self._busy(key)

    async def _run(self, work: Work[_Chunk], order: _Order) -> _Chunk:
        chunk = await self._context.requests.run(work)
        if chunk.released:
            self._context.gauge.added(len(chunk.released), sum(len(event) for _, event in chunk.released))
        for found, row in chunk.stubs:
            stub = await self._stub(found, row, order)
            if stub is None:
                chunk.busy.append(found.key)
            else:
                chunk.results[found.key] = stub
        return chunk

    async def _busy(self, key: str) -> ReleaseResult:
        async def work(connection: Connection) -> Found:
            return found_of(key, await connection.fetchrow(sql.READ, key, bucket_of(key)))

        return ReleaseResult(key, None, None, (await self._context.requests.run(work)).absence)

    async def _transaction(self, connection: Connection, keys: list[str], order: _Order, *, wait: bool) -> _Chunk:
        me = self._context.me.value
        chunk = _Chunk()
        async with transaction(connection, lock_timeout_seconds=LOCK_SECONDS):
            lock = sql.LOCK_FOR_RELEASE if wait else sql.LOCK_FOR_RELEASE_UNLESS_BUSY
            founds = {row["key"]: found_of(row["key"], row) for row in await connection.fetch(lock, keys, me)}
            if others := [key for key in keys if key not in founds]:
                self._sort_out(await _read(connection, others), founds, chunk, wait=wait)
            rows = [found.row for found in founds.values() if found.row is not None]
            served = await windows(connection, rows)
            for key, found in founds.items():
                self._decide(chunk, order, found, served.get(key, ()))
            if chunk.released:
                await self._store(connection, chunk.released, order)
        return chunk

    def _sort_out(self, others: Iterable[Found], founds: dict[str, Found], chunk: _Chunk, *, wait: bool) -> None:
        for found in others:
            if found.row is None or found.row.owner is not self._context.me:
                founds[found.key] = found
            elif wait:
                raise StartAgain  # it has come here since
            else:
                chunk.busy.append(found.key)

    def _decide(self, chunk: _Chunk, order: _Order, found: Found, window: tuple[Served, ...]) -> None:
        context = self._context
        release = decide_release(found, context.me, order.to, create=order.create)
        if release.row is None:
            chunk.results[found.key] = ReleaseResult(found.key, release.outcome, None, found.absence)
            return
        if found.row is None:
            chunk.stubs.append((found, release.row))
            return
        record = Record(release.row, window, made_by(release.row), context.clock.now())
        if release.outcome is Outcome.RELEASE:
            event = event_of(record)
            if not self._fits(order, chunk.released, len(event)):
                chunk.results[found.key] = ReleaseResult(found.key, None, None, found.absence)
                return
            chunk.released.append((release.row, event))
        chunk.results[found.key] = ReleaseResult(found.key, release.outcome, record, found.absence)

    def _fits(self, order: _Order, released: Sequence[tuple[Row, bytes]], size: int) -> bool:
        together = size + sum(len(event) for _, event in released)
        return self._context.limits.fits_release(order.depth, len(released) + 1, together, order.held)

    async def _store(self, connection: Connection, released: Sequence[tuple[Row, bytes]], order: _Order) -> None:
        rows = [(row.key, *row.version, signed(row.digest), event) for row, event in released]
        me = self._context.me.value
        status: str = await connection.execute(sql.RELEASE, *columnar(rows, 5), order.to.value, me)
        if status != f"INSERT 0 {len(rows)}":
            await check_open(connection)
            raise StartAgain

    async def _stub(self, found: Found, row: Row, order: _Order) -> ReleaseResult | None:
        """As a create: under the bucket's absence, in one statement, which takes its locks in the usual order.

        None: the record was made, or its absence given up, meanwhile."""
        context = self._context
        record = Record(row, (), made_by(row), context.clock.now())
        event = event_of(record)
        if not self._fits(order, (), len(event)):
            return ReleaseResult(found.key, None, None, found.absence)

        async def work(connection: Connection) -> bool:
            try:
                await store_change(connection, stub_arguments(context, row, event), found, context.me.value)
            except StartAgain:
                return False
            return True

        if not await context.requests.run(work):
            return None
        context.gauge.added(1, len(event))
        return ReleaseResult(found.key, Outcome.RELEASE, record, found.absence)


async def _read(connection: Connection, keys: list[str]) -> list[Found]:
    rows = await connection.fetch(sql.READ_MANY, keys, [bucket_of(key) for key in keys])
    return [found_of(row["asked"], row) for row in rows]


async def windows(connection: Connection, rows: Sequence[Row]) -> dict[str, tuple[Served, ...]]:
    """By key, requests of the retry window whose effects are in the row, newest last. Other entries do not travel, and
    take no place of those that do."""
    versions = [(row.key, *version) for row in rows for version in contained(row)]
    if not versions:
        return {}
    limits = RETRY_WINDOW_SECONDS * 1000, SERVED_WINDOW
    found: dict[str, list[Served]] = {}
    for columns in await connection.fetch(sql.SERVED_WINDOW, *columnar(versions, 3), *limits):
        served = served_of(columns)
        assert served is not None, "an inner join"
        found.setdefault(columns["key"], []).append(served)
    return {key: tuple(served[-SERVED_WINDOW:]) for key, served in found.items()}

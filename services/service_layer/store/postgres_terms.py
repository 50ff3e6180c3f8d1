"""Seizures on PostgreSQL, and apply where one has been.

A seizure takes its bucket's row first and so waits for creates and applies in that bucket, which hold it; then it takes
the rows. Who comes later sees the new term. Apply by terms holds the bucket in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.ownership.errors import OutboxFull
from libs.ownership.model import Absence, Record, Row, Served, Version, bases_text, bucket_of
from libs.ownership.rules import newest_of_each
from libs.ownership.terms import Fate, decide_apply, seized_absence, seized_row
from libs.ownership.wire import event_of
from libs.store.limits import Held
from libs.store.port import Applied, Depth
from libs.store.recovery import Conflict, Why
from libs.store.window import made_by
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_guards import removing
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_recovery import HIDDEN
from services.service_layer.store.postgres_release import windows
from services.service_layer.store.postgres_rows import (
    ABSENCE,
    RECORD_COLUMNS,
    ROW,
    absence_of,
    columnar,
    record_values,
    row_of,
    served_values,
    signed,
)

_HOLD = f"SELECT {ABSENCE} FROM bucket b WHERE b.bucket = ANY($1::smallint[]) ORDER BY b.bucket FOR UPDATE"
_ROWS = f"SELECT {ROW} FROM record r WHERE r.key = ANY($1::text[]) ORDER BY r.key FOR UPDATE"
_ROWS_OF_BUCKET = f"SELECT {ROW} FROM record r WHERE r.bucket = $1 ORDER BY r.key FOR UPDATE"
_HIDDEN = f"SELECT {ROW} {HIDDEN} ORDER BY r.key LIMIT $1 FOR UPDATE OF r"
_PUT_ABSENCES = """
UPDATE bucket b SET term = n.term, version = n.version, owner = n.owner
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::text[]) n(bucket, term, version, owner)
WHERE b.bucket = n.bucket AND (b.term, b.version) < (n.term, n.version)
"""
_SEIZE = f"""
WITH n AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bytea[])
                        n(key, term, revision, bases, digest, event)),
w AS (UPDATE record r SET owner = $7, term = n.term, revision = n.revision, bases = n.bases, digest = n.digest
      FROM n WHERE r.key = n.key RETURNING n.*)
INSERT INTO outbox (key, term, revision, event, bytes, traceparent, tick)
SELECT key, term, revision, event, octet_length(event), '', {sql.NOW} FROM w
"""
_JOURNAL = """
INSERT INTO conflict (bucket, key, term, revision, why, event)
SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[])
ON CONFLICT DO NOTHING
"""
_FORGET = "DELETE FROM served WHERE key = ANY($1::text[])"
_LEARN = f"""
INSERT INTO served AS o (key, principal, request_id, request_hash, term, revision, answer, tick)
SELECT n.*, {sql.NOW} FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::bigint[],
                                  $7::bytea[]) n {sql.LEARN}
"""
_DELETE = "DELETE FROM record WHERE key = ANY($1::text[])"
_CONFLICTS = "SELECT key, term, revision, why, event, resolution FROM conflict ORDER BY resolution <> '', id LIMIT $1"
_RESOLVE = (
    "UPDATE conflict SET resolution = $4 WHERE key = $1 AND term = $2 AND revision = $3"
    " AND resolution = '' AND $4 <> '' RETURNING 1"
)
_RECORD_WIDTH = len(RECORD_COLUMNS.split(", "))


async def apply_by_terms(connection: Connection, context: Context, records: Sequence[Record]) -> Applied:
    """One record after the other, by the rules; a transaction, or a part of the one that is open."""
    if connection.is_in_transaction():
        return await _Batch(connection, context).apply(records)
    async with transaction(connection):
        return await _Batch(connection, context).apply(records)


class _Batch:
    """What one transaction sees and leaves."""

    def __init__(self, connection: Connection, context: Context) -> None:
        self._connection = connection
        self._context = context
        self._rows: dict[str, Row] = {}
        self._changed: dict[str, Row] = {}
        self._served: list[tuple[str, Served]] = []
        self._replaced: list[Row] = []
        self._late: list[Record] = []

    async def apply(self, records: Sequence[Record]) -> Applied:
        keys = sorted({record.row.key for record in records}, key=str.encode)
        buckets = sorted({bucket_of(key) for key in keys})
        held = {row["bucket"]: absence_of(row) for row in await self._connection.fetch(_HOLD, buckets)}
        before = dict(held)
        for columns in await self._connection.fetch(_ROWS, keys):
            row = row_of(columns)
            assert row is not None, "no outer join"
            self._rows[row.key] = row
        fates = [self._judge(record, held) for record in records]
        await self._store([held[bucket] for bucket in buckets if held[bucket] != before[bucket]])
        return Applied(fates.count(Fate.NEWER), fates.count(Fate.OLD))

    def _judge(self, record: Record, held: dict[int, Absence]) -> Fate:
        key = record.row.key
        bucket = bucket_of(key)
        verdict = decide_apply(record, self._rows.get(key), held[bucket], self._context.me)
        held[bucket] = verdict.absence
        if verdict.journal is not None:
            self._replaced.append(verdict.journal)
            self._served = [one for one in self._served if one[0] != key]
        if verdict.fate is Fate.CONFLICT:
            self._late.append(record)
        if verdict.learn:
            self._served += [(key, served) for served in record.served]
        if verdict.fate is Fate.NEWER:
            self._rows[key] = self._changed[key] = record.row
        return verdict.fate

    async def _store(self, absences: Sequence[Absence]) -> None:
        connection, context = self._connection, self._context
        await put_absences(connection, absences)
        await journal_rows(connection, context, self._replaced, Why.REPLACED)
        await _note(connection, self._late, Why.LATE)
        if self._changed:
            ordered = [self._changed[key] for key in sorted(self._changed, key=str.encode)]
            values = [record_values(row, bucket_of(row.key), context.columns_of(row)) for row in ordered]
            await connection.execute(sql.APPLY, *columnar(values, _RECORD_WIDTH))
        if self._served:
            learned = [(key, *served_values(served)) for key, served in newest_of_each(self._served)]
            await connection.execute(_LEARN, *columnar(learned, 7))


async def put_absences(connection: Connection, absences: Sequence[Absence]) -> None:
    """Those that are higher than what is here."""
    if absences:
        rows = [(one.bucket, one.term, one.version, one.owner.value) for one in absences]
        await connection.execute(_PUT_ABSENCES, *columnar(sorted(rows), 4))


async def journal_rows(connection: Connection, context: Context, rows: Sequence[Row], why: Why) -> None:
    """Rows that are about to go. Requests that they have served are not done any more, as far as anybody sees."""
    if not rows:
        return
    served = await windows(connection, rows)
    now = context.clock.now()
    await _note(connection, [Record(row, served.get(row.key, ()), made_by(row), now) for row in rows], why)
    async with removing(connection, "served"):
        await connection.execute(_FORGET, [row.key for row in rows])


async def _note(connection: Connection, records: Sequence[Record], why: Why) -> None:
    if records:
        values = [(bucket_of(one.row.key), one.row.key, *one.row.version, why.value, event_of(one)) for one in records]
        await connection.execute(_JOURNAL, *columnar(values, 6))


class PostgresSeizures:
    """`libs.store.recovery.Seizures`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def seize(self, bucket: int, term: int) -> Absence:
        context = self._context
        depth, held = await context.gauge.depth(), await context.gauge.held()
        made: list[bytes] = []

        async def work(connection: Connection) -> Absence:
            made.clear()
            async with transaction(connection):
                (found,) = await connection.fetch(_HOLD, [bucket])
                here = absence_of(found)
                if here.term == term:
                    return here
                after = seized_absence(here, context.me, term)
                made.extend(await self._seize_rows(connection, bucket, term, depth, held))
                await put_absences(connection, [after])
                return after

        absence = await context.control.run(work)
        context.gauge.added(len(made), sum(map(len, made)))
        context.written.beat()
        return absence

    async def _seize_rows(
        self, connection: Connection, bucket: int, term: int, depth: Depth, held: Held
    ) -> list[bytes]:
        """Returns their events. Raises OutboxFull."""
        context = self._context
        found = [row_of(columns) for columns in await connection.fetch(_ROWS_OF_BUCKET, bucket)]
        before = [row for row in found if row is not None]
        if not before:
            return []
        served = await windows(connection, before)
        rows = [seized_row(row, context.me, term) for row in before]
        now = context.clock.now()
        events = [event_of(Record(row, served.get(row.key, ()), made_by(row), now)) for row in rows]
        if not context.limits.fits_release(depth, len(events), sum(map(len, events)), held):
            raise OutboxFull(entries=str(depth.entries), bytes=str(depth.bytes))
        values = [
            (row.key, *row.version, bases_text(row.bases), signed(row.digest), event)
            for row, event in zip(rows, events, strict=True)
        ]
        await connection.execute(_SEIZE, *columnar(values, 6), context.me.value)
        return events

    async def take_terms(self, absences: Sequence[Absence]) -> None:
        async def work(connection: Connection) -> None:
            await put_absences(connection, absences)

        await self._context.control.run(work)

    async def settle(self, limit: int) -> int:
        async def work(connection: Connection) -> int:
            async with transaction(connection):
                found = [row_of(columns) for columns in await connection.fetch(_HIDDEN, limit)]
                hidden = [row for row in found if row is not None]
                await journal_rows(connection, self._context, hidden, Why.LEFT)
                async with removing(connection, "record"):
                    await connection.execute(_DELETE, [row.key for row in hidden])
                return len(hidden)

        return await self._context.control.run(work)

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

"""Moving records and absences, on PostgreSQL. Releases are in `postgres_release`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from libs.ownership.model import Absence, Record, Store, bucket_of
from libs.ownership.rules import is_newer, newest_of_each
from libs.store.port import Applied, FeedStep, Released, UnknownPartition
from services.service_layer.store import postgres_sql as sql
from services.service_layer.store.postgres_context import Context, absences_at
from services.service_layer.store.postgres_pool import Connection, transaction
from services.service_layer.store.postgres_release import Releases
from services.service_layer.store.postgres_rows import absence_of, columnar, record_values, served_values
from services.service_layer.store.postgres_terms import apply_by_terms

_RECORD_WIDTH = 16
_SERVED_WIDTH = 7


class PostgresTransfers:
    """`libs.store.port.Transfers`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._releases = Releases(context)

    async def release(self, keys: Sequence[str], to: Store, *, create: bool) -> Released:
        return await self._releases.release(keys, to, create=create)

    async def apply(self, records: Sequence[Record], step: FeedStep | None = None) -> Applied:
        if not records and step is None:
            return Applied(0, 0)

        async def adopt(connection: Connection) -> Applied:
            return await apply_records(connection, self._context, records)

        if step is None:
            # Part of a handoff that a client waits for; the feed can wait.
            adopted = await self._context.requests.run(adopt)
            self._context.written.beat()
            return adopted
        of_log = step

        async def follow(connection: Connection) -> Applied:
            async with transaction(connection):
                await _move(connection, of_log)
                applied = await apply_records(connection, self._context, records)
                journaled = len(records) - applied.applied - applied.old
                await _count(connection, of_log, applied, journaled)
                return applied

        followed = await self._context.apply.run(follow)
        self._context.written.beat()
        return followed

    async def absences(self, buckets: Sequence[int] = ()) -> list[Absence]:
        async def work(connection: Connection) -> list[Absence]:
            if buckets:
                return list((await absences_at(connection, buckets)).values())
            return [absence_of(row) for row in await connection.fetch(sql.ALL_ABSENCES)]

        return await self._context.requests.run(work)

    async def release_absence(self, bucket: int, to: Store) -> Absence:
        me = self._context.me
        if to is me:
            raise ValueError(f"store {to} cannot release an absence to itself")

        async def work(connection: Connection) -> Absence:
            released = await connection.fetchrow(sql.RELEASE_ABSENCE, bucket, to.value, me.value)
            if released is not None:
                return absence_of(released)
            # A statement of its own: the snapshot of the one that waited is older than what it waited for.
            return (await absences_at(connection, [bucket]))[bucket]

        return await self._context.requests.run(work)

    async def adopt_absence(self, absence: Absence, *, despite_conflicts: bool = False) -> tuple[bool, Absence]:
        me = self._context.me

        async def work(connection: Connection) -> tuple[bool, Absence]:
            arguments = (absence.bucket, absence.term, absence.version, me.value, despite_conflicts)
            adopted = await connection.fetchrow(sql.ADOPT_ABSENCE, *arguments) if absence.owner is me else None
            if adopted is not None:
                return True, absence_of(adopted)
            return False, (await absences_at(connection, [absence.bucket]))[absence.bucket]

        return await self._context.requests.run(work)

    async def return_absence(self, absence: Absence) -> Absence | None:
        me = self._context.me
        if absence.owner is not me:
            return None

        async def work(connection: Connection) -> Absence | None:
            arguments = (absence.bucket, absence.term, absence.version, me.other.value)
            declined = await connection.fetchrow(sql.RETURN_ABSENCE, *arguments)
            return absence_of(declined) if declined is not None else None

        return await self._context.requests.run(work)


async def apply_records(connection: Connection, context: Context, records: Sequence[Record]) -> Applied:
    """In one statement, or none, as long as no bucket was seized; else in a transaction."""
    if not records:
        return Applied(0, 0)
    if any(record.row.version.term for record in records):
        return await apply_by_terms(connection, context, records)
    applied = await _apply_plain(connection, context, records)
    if applied is None:
        return await apply_by_terms(connection, context, records)
    return applied


async def _apply_plain(connection: Connection, context: Context, records: Sequence[Record]) -> Applied | None:
    """None: a bucket has another term than 0, and nothing was applied. A record that a higher one of the same batch
    overtakes counts as old."""
    newest: dict[str, Record] = {}
    for record in records:
        before = newest.get(record.row.key)
        if is_newer(record, None if before is None else before.row):
            newest[record.row.key] = record
    # In key order, so that two batches cannot wait for each other in a ring.
    ordered = [newest[key] for key in sorted(newest, key=str.encode)]
    rows = [record_values(one.row, bucket_of(one.row.key), context.columns_of(one.row)) for one in ordered]
    arguments = columnar(rows, _RECORD_WIDTH)
    learned = newest_of_each((record.row.key, served) for record in records for served in record.served)
    served = [(key, *served_values(one)) for key, one in learned]
    applied = await connection.fetchval(sql.APPLY_WITH_SERVED, *arguments, *columnar(served, _SERVED_WIDTH))
    if applied == sql.SEIZED:
        return None
    return Applied(applied, len(records) - applied)


async def _move(connection: Connection, step: FeedStep) -> None:
    """Raises UnknownPartition; the transaction is to be rolled back then."""
    if not step.positions:
        return
    positions = sorted(step.positions)
    moved = _rows(await connection.execute(sql.MOVE, *columnar(positions, 4)))
    if moved == len(positions):
        return
    # A partition of which nothing was read yet has no row: it stands at 0.
    made = _rows(await connection.execute(sql.MAKE_PARTITIONS, [position.partition for position in positions]))
    if made:
        unmoved = [p for p in positions if p.before == 0]
        moved += _rows(await connection.execute(sql.MOVE, *columnar(unmoved, 4)))
    if moved != len(positions):
        raise UnknownPartition


async def _count(connection: Connection, step: FeedStep, applied: Applied, journaled: int) -> None:
    """At the first partition of the step: the sums are over all of them."""
    if step.parked:
        await connection.execute(sql.PARK, *columnar([astuple(one) for one in step.parked], 7))
    partition = min(position.partition for position in step.positions) if step.positions else 0
    old = applied.old + step.skipped
    await connection.execute(sql.COUNT, partition, applied.applied, old, len(step.parked), journaled)


def _rows(status: str) -> int:
    """Of the server's answer to a statement: "INSERT 0 3", "UPDATE 3"."""
    return int(status.rsplit(" ", 1)[1])

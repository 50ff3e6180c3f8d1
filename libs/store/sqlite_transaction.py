"""One open transaction of a store on SQLite, in the writer's thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial

from libs.clock import Clock
from libs.ownership.model import (
    BucketOwner,
    Call,
    Found,
    Head,
    Row,
    Served,
    Store,
    Version,
    bases_of,
    bases_text,
    bucket_of,
)
from libs.store.limits import Held, OutboxLimits
from libs.store.outbox import ChangeEntry, Depth
from libs.store.port import FeedStep, Parked, Position
from libs.store.recovery import Conflict, Standing
from libs.store.sqlite_core import WITH_SERVED, Core, served_up_to
from libs.store.sqlite_guards import count_now, removing
from libs.store.sqlite_recovery import JOURNAL, put_standing, standing_of
from libs.store.sqlite_schema import (
    BUCKET,
    LEARN,
    ROW,
    SERVE,
    STORES,
    VISIBLE,
    Value,
    bucket_owner_from,
    row_from,
    signed,
    unsigned,
    update_values,
    values_of,
)
from libs.store.transaction import (
    Counts,
    Lane,
    Owned,
    Procedure,
    Put,
    PutBucket,
    PutHead,
    StartAgain,
    T,
    run_to_end,
)

_BUCKETS = f"SELECT {BUCKET} FROM json_each(?) n JOIN bucket b ON b.bucket = n.value"
_PUT_BUCKET = (
    "UPDATE bucket SET term = ?, version = ?, owner = ? WHERE bucket = ? AND (term, version, owner) = (?, ?, ?)"
)
# If two logs have an event at the same position, one without a right code does not replace another one.
_PARK = (
    "INSERT OR REPLACE INTO parked (part, at, key, reason, event, headers, topic, unauthenticated)"
    " WITH made (part, at, key, reason, event, headers, topic, unauthenticated) AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?))"
    " SELECT * FROM made WHERE NOT (unauthenticated AND EXISTS"
    " (SELECT 1 FROM parked p WHERE p.part = made.part AND p.at = made.at AND NOT p.unauthenticated))"
)
# events, bytes
_TRIM = (
    "DELETE FROM parked WHERE rowid IN (SELECT id FROM (SELECT rowid AS id,"
    " row_number() OVER newest AS number, sum(length(event) + length(headers)) OVER newest AS size"
    " FROM parked WHERE unauthenticated WINDOW newest AS (ORDER BY rowid DESC))"
    " WHERE number > 1 AND (number > ? OR size > ?))"
)
_OPEN = (
    "SELECT n.value FROM json_each(?) n"
    " WHERE EXISTS (SELECT 1 FROM conflict c WHERE c.bucket = n.value AND c.resolution = '')"
)


class SqliteTransactions:
    """`libs.store.transaction.Transactions`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run(self, procedure: Procedure[T], lane: Lane = Lane.CALL) -> T:
        core, background = self._core, lane in (Lane.BULK, Lane.COPY, Lane.FEED)
        committed = core.written.notify if lane in (Lane.COPY, Lane.FEED) else core.committed
        return await core.database.write(partial(self._run, procedure), background=background, committed=committed)

    def _run(self, procedure: Procedure[T], connection: sqlite3.Connection) -> T:
        with self._core.outbox_job(connection):
            return run_to_end(procedure(SqliteTransaction(self._core, connection)))


class SqliteTransaction:
    """`libs.store.transaction.Transaction`. Its operations never wait: the file has one writer."""

    def __init__(self, core: Core, connection: sqlite3.Connection) -> None:
        self._core = core
        self._connection = connection

    @property
    def store(self) -> Store:
        return self._core.store

    @property
    def clock(self) -> Clock:
        return self._core.clock

    @property
    def limits(self) -> OutboxLimits:
        return self._core.limits

    async def find(self, call: Call) -> Found:
        self._core.complete(self._connection, [call.key])
        return self._core.find(self._connection, call.key, call)

    async def found(self, keys: Sequence[str], *, create: bool, wait: bool) -> Mapping[str, Found]:
        self._core.complete(self._connection, keys)
        return {key: self._core.find(self._connection, key) for key in keys}

    async def rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        self._core.complete(self._connection, keys)
        statement = f"SELECT {ROW} FROM json_each(?) n JOIN {self._core.layout.table} r ON r.key = n.value"
        return {row.key: row for row in self._rows(statement, json.dumps(keys))}

    async def rows_of_bucket(self, bucket: int) -> Sequence[Row]:
        self._core.check_complete("a seizure")
        statement = f"SELECT {ROW} FROM {self._core.layout.table} r WHERE r.bucket = ? ORDER BY r.key"
        return self._rows(statement, bucket)

    async def hidden(self, limit: int, bucket: int | None = None) -> Sequence[Row]:
        self._core.check_complete("a search for rows of a lower term")
        one, of_bucket = ((bucket,), " AND b.bucket = ?") if bucket is not None else ((), "")
        statement = (
            f"SELECT {ROW} FROM bucket b JOIN {self._core.layout.table} r ON r.bucket = b.bucket AND r.term < b.term"
            f" WHERE b.term > 0{of_bucket} LIMIT ?"
        )
        return self._rows(statement, *one, limit)

    def _rows(self, statement: str, *parameters: Value) -> list[Row]:
        found = (row_from(values) for values in self._connection.execute(statement, parameters))
        return [row for row in found if row is not None]

    async def put(self, puts: Sequence[Put], *, own: bool) -> set[str]:
        return {put.row.key for put in puts if not self._put(put, own=own)}

    def _put(self, put: Put, *, own: bool) -> bool:
        row, before = put
        core, statements = self._core, self._core.statements
        if before is None:
            values = (*values_of(row, core.layout), core.store.value if own else None)
            return self._connection.execute(statements.insert[own], values).rowcount == 1
        if put.keeps_payload:
            return self._put_head(PutHead(row.head, before.head), own=own)
        owner = core.store.value if own else before.owner.value
        values = update_values(values_of(row, core.layout), owner, before.version)
        return self._connection.execute(statements.update[own], values).rowcount == 1

    async def owned(self, buckets: Sequence[int], after: str, limit: int) -> Sequence[Owned]:
        statement = (
            f"SELECT r.key, length(r.payload) FROM {self._core.layout.table} r"
            f" WHERE r.bucket = ? AND r.key > ? AND r.owner = ? AND {VISIBLE} ORDER BY r.key LIMIT ?"
        )
        found: list[Owned] = []
        first = bucket_of(after) if after else -1
        for bucket in buckets:
            if bucket >= first and len(found) < limit:
                values = (bucket, after if bucket == first else "", self.store.value, limit - len(found))
                found += (Owned(key, size) for key, size in self._connection.execute(statement, values))
        return found

    async def lock_owned(self, keys: Sequence[str]) -> Sequence[Row]:
        statement = (
            f"SELECT {ROW} FROM json_each(?) n JOIN {self._core.layout.table} r ON r.key = n.value"
            f" WHERE r.owner = ? AND {VISIBLE}"
        )
        return self._rows(statement, json.dumps(keys), self.store.value)

    async def heads(self, keys: Sequence[str], *, lock: bool) -> Mapping[str, Head]:
        self._core.complete(self._connection, keys)
        statement = (
            "SELECT r.key, r.term, r.revision, r.owner, r.digest, r.bases"
            f" FROM json_each(?) n JOIN {self._core.layout.table} r ON r.key = n.value"
        )
        return {
            key: Head(key, Version(term, revision), STORES[owner], unsigned(digest), bases_of(bases))
            for key, term, revision, owner, digest, bases in self._connection.execute(statement, (json.dumps(keys),))
        }

    async def put_heads(self, puts: Sequence[PutHead], *, own: bool) -> set[str]:
        statement, values = self._core.statements.update_envelope[own], [self._head_values(put, own) for put in puts]
        if self._connection.executemany(statement, values).rowcount == len(values):
            return set()
        # Some have changed: what is stored shows which. The transaction starts again in any case.
        stored = await self.heads([put.head.key for put in puts], lock=True)
        return {put.head.key for put in puts if (here := stored.get(put.head.key)) is None or here != put.head}

    def _put_head(self, put: PutHead, *, own: bool) -> bool:
        statement = self._core.statements.update_envelope[own]
        return self._connection.execute(statement, self._head_values(put, own)).rowcount == 1

    def _head_values(self, put: PutHead, own: bool) -> tuple[Value, ...]:
        (key, version, owner, digest, bases), before = put
        was_owner = self._core.store.value if own else before.owner.value
        return (owner.value, *version, bases_text(bases), signed(digest), key, was_owner, *before.version)

    async def delete(self, keys: Sequence[str]) -> None:
        table = self._core.layout.table
        with removing(self._connection, table):
            self._connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])

    async def served(
        self, effects: Sequence[tuple[str, Version]], *, answers: bool = True
    ) -> Sequence[tuple[str, Served]]:
        if answers:
            return served_up_to(self._connection, effects)
        # Of many records, most have served no request: one statement finds the others.
        found = self._connection.execute(WITH_SERVED, (json.dumps([key for key, _ in effects]),))
        keys = {key for (key,) in found}
        some = served_up_to(self._connection, [one for one in effects if one[0] in keys])
        return [(key, replace(served, answer=None)) for key, served in some]

    async def serve(self, key: str, served: Served, known: Served | None) -> bool:
        self._connection.execute(SERVE, _served_values(key, served))
        return True

    async def learn(self, learned: Sequence[tuple[str, Served]]) -> None:
        self._connection.executemany(LEARN, [_served_values(key, served) for key, served in learned])

    async def forget(self, keys: Sequence[str]) -> None:
        with removing(self._connection, "served"):
            self._connection.executemany("DELETE FROM served WHERE key = ?", [(key,) for key in keys])

    async def buckets(self, numbers: Sequence[int], *, shared: bool = False) -> Mapping[int, BucketOwner]:
        found = map(bucket_owner_from, self._connection.execute(_BUCKETS, (json.dumps(numbers),)))
        return {one.bucket: one for one in found}

    async def put_buckets(self, puts: Sequence[PutBucket]) -> None:
        for bucket, before in puts:
            values = (bucket.term, bucket.version, bucket.owner.value, bucket.bucket)
            condition = (before.term, before.version, before.owner.value)
            if self._connection.execute(_PUT_BUCKET, (*values, *condition)).rowcount != 1:
                raise StartAgain
        if puts:
            self._core.book.count_change(self._connection, self._core.database.transactions)

    async def depth(self) -> Depth:
        return self._core.book.depth(self._connection)

    async def held(self) -> Held:
        return self._core.book.held(self._connection)

    async def enqueue(self, entries: Sequence[ChangeEntry]) -> None:
        if entries:
            self._core.book.add(self._connection, entries)
            self._core.book.count_change(self._connection, self._core.database.transactions)

    async def move(self, positions: Sequence[Position]) -> bool:
        return all(_move(self._connection, one) for one in positions)

    async def park(self, parked: Sequence[Parked]) -> None:
        self._connection.executemany(_PARK, [astuple(one) for one in parked])

    async def trim_unauthenticated(self, events: int, size: int) -> None:
        self._connection.execute(_TRIM, (events, size))

    async def unpark(self, partition: int, offset: int) -> bool:
        return drop(partition, offset, self._connection)

    async def count(self, step: FeedStep, counts: Counts) -> None:
        values = [(value, name) for name, value in counts._asdict().items()]
        self._connection.executemany("UPDATE counter SET value = value + ? WHERE name = ?", values)

    async def disputed(self, buckets: Sequence[int]) -> set[int]:
        return {bucket for (bucket,) in self._connection.execute(_OPEN, (json.dumps(buckets),))}

    async def journal(self, conflicts: Sequence[Conflict]) -> None:
        values = [(bucket_of(one.key), one.key, *one.version, one.why.value, one.event) for one in conflicts]
        self._connection.executemany(JOURNAL, values)

    async def fence_reason(self) -> str:
        (reason,) = self._connection.execute("SELECT gone FROM standing").fetchone()
        return str(reason)

    async def standing(self) -> Standing:
        return standing_of(self._connection)

    async def put_standing(self, standing: Standing) -> None:
        put_standing(self._connection, standing)

    async def count_rows(self) -> None:
        self._core.check_complete("opening a recovered store")
        count_now(self._connection, self._core.layout.table)

    async def invalidate_positions(self) -> None:
        self._connection.execute("UPDATE change_of SET id = lower(hex(randomblob(8)))")


def _served_values(key: str, served: Served) -> tuple[Value, ...]:
    """Return the parameters of SERVE and LEARN."""
    return key, served.principal, served.request_id, served.request_hash, *served.version, served.answer


def _move(connection: sqlite3.Connection, position: Position) -> bool:
    connection.execute("INSERT OR IGNORE INTO progress (part, next) VALUES (?, 0)", (position.partition,))
    values = (position.after, position.mark, position.partition, position.before)
    return (
        connection.execute("UPDATE progress SET next = ?, mark = ? WHERE part = ? AND next = ?", values).rowcount == 1
    )


def drop(partition: int, offset: int, connection: sqlite3.Connection) -> bool:
    """Remove a parked event. Return False if there is none."""
    return connection.execute("DELETE FROM parked WHERE part = ? AND at = ?", (partition, offset)).rowcount > 0

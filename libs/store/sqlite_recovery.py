"""Recognising the loss of a store on SQLite, and making it good."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from libs.ownership.model import Absence, Record, Row, Version, bases_text, bucket_of
from libs.ownership.orders import Order, check_order, order_of, order_text
from libs.ownership.terms import Fate, decide_apply, seized_absence, seized_row
from libs.ownership.wire import event_of
from libs.store.recovery import Conflict, FencedAt, Identity, Standing, StillHidden, Why
from libs.store.sqlite_core import Core, window
from libs.store.sqlite_guards import count_now, removing
from libs.store.sqlite_schema import BUCKET, ROW, absence_from, row_from, signed, values_of

RECOVERY_TABLES = (
    # The id is made with the file: a copy of the file has it too, a file that was made anew has another one.
    "CREATE TABLE standing (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, changes INTEGER NOT NULL,"
    " gone TEXT NOT NULL, other_place TEXT, other_changes INTEGER)",
    "INSERT INTO standing VALUES (1, lower(hex(randomblob(16))), 0, '', NULL, NULL)",
    "CREATE TABLE conflict (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, key TEXT NOT NULL, term INTEGER NOT NULL,"
    " revision INTEGER NOT NULL, why TEXT NOT NULL, event BLOB NOT NULL, resolution TEXT NOT NULL DEFAULT '',"
    " UNIQUE (key, term, revision))",
    "CREATE INDEX conflict_open ON conflict (bucket) WHERE resolution = ''",
    # Mostly empty: apply asks it before each batch.
    "CREATE INDEX bucket_seized ON bucket (bucket) WHERE term > 0",
)
ORDER_COLUMNS = (
    "ALTER TABLE standing ADD COLUMN recovery_order TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE standing ADD COLUMN fenced_at TEXT NOT NULL DEFAULT ''",
)
_OPEN = "SELECT 1 FROM conflict WHERE bucket = ? AND resolution = '' LIMIT 1"
_JOURNAL = (
    "INSERT INTO conflict (bucket, key, term, revision, why, event) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def is_disputed(connection: sqlite3.Connection, bucket: int) -> bool:
    """Whether the bucket has a conflict that nobody has resolved."""
    return connection.execute(_OPEN, (bucket,)).fetchone() is not None


class Terms:
    """Apply in buckets that were seized, or are by what arrives. Used in the writer's thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        table = core.layout.table
        rows = f"SELECT {ROW} FROM {table} r"
        self._row = f"{rows} WHERE r.key = ?"
        self.hidden = f"{rows} JOIN bucket b ON b.bucket = r.bucket AND b.term > r.term WHERE b.term > 0"
        self.of_bucket = f"{rows} WHERE r.bucket = ? ORDER BY r.key"
        self.seize = f"UPDATE {table} SET term = ?, revision = ?, owner = ?, bases = ?, digest = ? WHERE key = ?"

    def seized_buckets(self, connection: sqlite3.Connection) -> set[int]:
        return {bucket for (bucket,) in connection.execute("SELECT bucket FROM bucket WHERE term > 0")}

    def take(self, connection: sqlite3.Connection, record: Record) -> Fate:
        key = record.row.key
        bucket = bucket_of(key)
        values = connection.execute(self._row, (key,)).fetchone()
        here = row_from(values) if values is not None else None
        found = connection.execute(f"SELECT {BUCKET} FROM bucket b WHERE b.bucket = ?", (bucket,)).fetchone()
        absence = absence_from(found)
        verdict = decide_apply(record, here, absence, self._core.store)
        if verdict.absence != absence:
            put_absence(connection, verdict.absence)
        if verdict.journal is not None:
            self.journal(connection, verdict.journal, Why.REPLACED)
        if verdict.fate is Fate.CONFLICT:
            _note(connection, record, Why.LATE)
        if verdict.learn:
            self._core.learn(connection, key, record.served)
        if verdict.fate is Fate.NEWER:
            connection.execute(self._core.statements.apply, values_of(record.row, self._core.layout))
        return verdict.fate

    def journal(self, connection: sqlite3.Connection, row: Row, why: Why) -> None:
        """A row that is about to go. Requests that it has served are not done any more, as far as anybody sees."""
        _note(connection, self._core.record(row, window(connection, row)), why)
        with removing(connection, "served"):
            connection.execute("DELETE FROM served WHERE key = ?", (row.key,))


def _note(connection: sqlite3.Connection, record: Record, why: Why) -> None:
    row = record.row
    connection.execute(_JOURNAL, (bucket_of(row.key), row.key, *row.version, why.value, event_of(record)))


def put_absence(connection: sqlite3.Connection, absence: Absence) -> None:
    """If it is higher than what is here."""
    connection.execute(
        "UPDATE bucket SET term = ?1, version = ?2, owner = ?3 WHERE bucket = ?4 AND (term, version) < (?1, ?2)",
        (absence.term, absence.version, absence.owner.value, absence.bucket),
    )


@dataclass(frozen=True)
class SqliteRecovery:
    core: Core

    async def standing(self) -> Standing:
        return await self.core.database.read(_standing)

    async def fence(self, reason: str, *, order: Order | None = None, since: Mapping[int, int] | None = None) -> None:
        await self.core.database.write(partial(_fence, reason, order, since))

    async def reopen(self, *, order: Order | None = None, seen: Standing | None = None) -> None:
        self.core.check_complete("opening a recovered store")
        await self.core.database.write(partial(_reopen, Terms(self.core), self.core.layout.table, order, seen))

    async def take_order(self, order: Order) -> None:
        await self.core.database.write(partial(_take_order, order))

    async def vouch(self, changes: int) -> None:
        await self.core.database.write(partial(_vouch, changes))

    async def note_other(self, other: Identity, *, anew: bool = False) -> None:
        await self.core.database.write(partial(_note_other, other, anew), background=True)

    async def skip_to(self, next_offsets: Mapping[int, int]) -> None:
        await self.core.database.write(partial(_skip_to, next_offsets.items()), background=True)


def _standing(connection: sqlite3.Connection) -> Standing:
    place, changes, gone, other_place, other_changes, order, fenced_at, conflicts = connection.execute(
        "SELECT id, changes, gone, other_place, other_changes, recovery_order, fenced_at,"
        " (SELECT count(*) FROM conflict WHERE resolution = '') FROM standing"
    ).fetchone()
    other = None if other_place is None else Identity(other_place, other_changes)
    now = Identity(place, changes)
    return Standing(now, place, gone, other, conflicts, order_of(order), FencedAt.decode(fenced_at))


def _take_order(order: Order | None, connection: sqlite3.Connection) -> None:
    """None: no order of a recovery. Raises LateOrder, ForeignControl."""
    if order is not None:
        (kept,) = connection.execute("SELECT recovery_order FROM standing").fetchone()
        check_order(order_of(kept), order)
        connection.execute("UPDATE standing SET recovery_order = ?", (order_text(order),))


def _fence(reason: str, order: Order | None, since: Mapping[int, int] | None, connection: sqlite3.Connection) -> None:
    _take_order(order, connection)
    if since is None:
        connection.execute("UPDATE standing SET fenced_at = ''")
    else:
        (changes,) = connection.execute("SELECT changes FROM standing").fetchone()
        text = FencedAt(changes, since).encode()
        connection.execute("UPDATE standing SET fenced_at = ? WHERE gone = ''", (text,))
    connection.execute("UPDATE standing SET gone = ? WHERE gone = ''", (reason,))


def _vouch(changes: int, connection: sqlite3.Connection) -> None:
    known = _standing(connection).fenced_at
    if known is not None and changes > known.changes:
        text = FencedAt(changes, known.next_offsets).encode()
        connection.execute("UPDATE standing SET fenced_at = ?", (text,))


def _reopen(
    terms: Terms, table: str, order: Order | None, seen: Standing | None, connection: sqlite3.Connection
) -> None:
    if seen is not None:
        now = _standing(connection)
        seen.check_fence(now.gone, by_admission=now.fenced_at is not None)
    _take_order(order, connection)
    if connection.execute(f"{terms.hidden} LIMIT 1").fetchone() is not None:
        raise StillHidden
    count_now(connection, table)
    if connection.execute("UPDATE standing SET gone = '', fenced_at = '' WHERE gone <> ''").rowcount:
        # Numbers that were given before the file went back are given again: no place of a watch is one of this file.
        connection.execute("UPDATE change_of SET id = lower(hex(randomblob(8)))")


def _note_other(other: Identity, anew: bool, connection: sqlite3.Connection) -> None:
    connection.execute(
        "UPDATE standing SET other_place = ?1, other_changes = ?2"
        " WHERE ?3 OR other_place IS NULL OR (other_place = ?1 AND other_changes < ?2)",
        (*other, anew),
    )


def _skip_to(offsets: Iterable[tuple[int, int]], connection: sqlite3.Connection) -> None:
    connection.executemany(
        "INSERT INTO progress (part, next) VALUES (?, ?) ON CONFLICT DO UPDATE"
        " SET next = excluded.next, mark = '' WHERE excluded.next > next",
        list(offsets),
    )


class SqliteSeizures:
    """`libs.store.recovery.Seizures`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._terms = Terms(core)

    async def seize(self, bucket: int, term: int) -> Absence:
        self._core.check_complete("a seizure")
        work = partial(self._seize, bucket, term)
        return await self._core.database.write(work, committed=self._core.committed)

    def _seize(self, bucket: int, term: int, connection: sqlite3.Connection) -> Absence:
        core = self._core
        found = connection.execute(f"SELECT {BUCKET} FROM bucket b WHERE b.bucket = ?", (bucket,)).fetchone()
        here = absence_from(found)
        if here.term == term:
            return here
        after = seized_absence(here, core.store, term)
        with core.outbox_job(connection):
            for values in connection.execute(self._terms.of_bucket, (bucket,)).fetchall():
                before = row_from(values)
                assert before is not None, "no outer join"
                row = seized_row(before, core.store, term)
                core.book.add(connection, core.record(row, window(connection, row)), "", reserve=True)
                columns = (*row.version, row.owner.value, bases_text(row.bases), signed(row.digest), row.key)
                connection.execute(self._terms.seize, columns)
        put_absence(connection, after)
        return after

    async def take_terms(self, absences: Sequence[Absence]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for one in absences:
                put_absence(connection, one)

        await self._core.database.write(work)

    async def settle(self, limit: int) -> int:
        self._core.check_complete("a recovery")
        return await self._core.database.write(partial(self._settle, limit), committed=self._core.committed)

    def _settle(self, limit: int, connection: sqlite3.Connection) -> int:
        table = self._core.layout.table
        hidden = [row_from(values) for values in connection.execute(f"{self._terms.hidden} LIMIT ?", (limit,))]
        for row in hidden:
            assert row is not None, "no outer join"
            self._terms.journal(connection, row, Why.LEFT)
            # Here alone a row goes: it is in the journal, and the store serves nobody.
            with removing(connection, table):
                connection.execute(f"DELETE FROM {table} WHERE key = ?", (row.key,))
        return len(hidden)

    async def conflicts(self, limit: int) -> list[Conflict]:
        return await self._core.database.read(partial(_conflicts, limit))

    async def disputed(self, buckets: Sequence[int] = ()) -> set[int]:
        found = await self._core.database.read(_disputed)
        return found.intersection(buckets) if buckets else found

    async def resolve(self, key: str, version: Version, resolution: str) -> bool:
        statement = (
            "UPDATE conflict SET resolution = ?1 WHERE key = ?2 AND term = ?3 AND revision = ?4"
            " AND resolution = '' AND ?1 <> ''"
        )

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute(statement, (resolution, key, *version)).rowcount == 1

        return await self._core.database.write(work)


def _disputed(connection: sqlite3.Connection) -> set[int]:
    return {bucket for (bucket,) in connection.execute("SELECT DISTINCT bucket FROM conflict WHERE resolution = ''")}


def _conflicts(limit: int, connection: sqlite3.Connection) -> list[Conflict]:
    found = connection.execute(
        "SELECT key, term, revision, why, event, resolution FROM conflict ORDER BY resolution <> '', id LIMIT ?",
        (limit,),
    )
    return [
        Conflict(key, Version(term, revision), Why(why), event, resolution)
        for key, term, revision, why, event, resolution in found
    ]

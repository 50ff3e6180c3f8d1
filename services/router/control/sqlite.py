"""The control store in one SQLite file, for all routers on one host. Transactions are short; no lock outlives one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from libs.clock import Clock, SystemClock
from libs.errors import DiskFull, LockTimeout, Overloaded, StoreUnavailable
from libs.sqlite import Database, Migration, Options
from services.router.control import sqlite_jobs
from services.router.control.codec import (
    gates_from_json,
    gates_to_json,
    read_setting,
    setting_from_json,
    setting_to_json,
)
from services.router.control.info import ControlInfo
from services.router.control.leases import Lease, LeaseObservations
from services.router.control.port import (
    AUTOMATIC,
    KEPT_REPORTS,
    ControlUnavailable,
    JournalEntry,
    LastRollback,
    Report,
)
from services.router.core.jobs import Job
from services.router.core.phase import Setting

_CALL_SECONDS = 1.5
_OPTIONS = Options(exclusive=False, readers=1, queue_jobs=256, busy_seconds=1.0)

_TABLES = (
    "CREATE TABLE setting (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE journal (generation INTEGER PRIMARY KEY, time_seconds REAL NOT NULL, actor TEXT NOT NULL,"
    " action TEXT NOT NULL, reason TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, gates TEXT NOT NULL,"
    " overridden INTEGER NOT NULL)",
    "CREATE TABLE lease (name TEXT PRIMARY KEY, holder TEXT NOT NULL, renewals INTEGER NOT NULL,"
    " ttl_seconds REAL NOT NULL)",
    # Remembered values: `job` is the name, `cursor` the value. The other columns are those of an earlier release, whose
    # routers read and write the same rows.
    "CREATE TABLE job (job TEXT PRIMARY KEY, running INTEGER NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,"
    " rate REAL NOT NULL, note TEXT NOT NULL, cursor TEXT NOT NULL, finished_seconds REAL NOT NULL)",
    "CREATE TRIGGER journal_is_never_changed BEFORE UPDATE ON journal"
    " BEGIN SELECT raise(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER journal_is_never_cut BEFORE DELETE ON journal"
    " BEGIN SELECT raise(ABORT, 'the journal is append-only'); END",
)
_REPORT_TABLE = (
    "CREATE TABLE report (router TEXT PRIMARY KEY, number INTEGER NOT NULL, text TEXT NOT NULL,"
    " time_seconds REAL NOT NULL)"
)

_ROLLBACK_TABLES = (
    "CREATE TABLE last_rollback (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL,"
    " time_seconds REAL NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, reason TEXT NOT NULL,"
    " before TEXT NOT NULL, after TEXT NOT NULL, gates TEXT NOT NULL, overridden INTEGER NOT NULL,"
    " watched_seconds REAL NOT NULL)",
    f"INSERT INTO last_rollback SELECT 1, j.*, 0.0 FROM journal j WHERE j.action = '{AUTOMATIC}'"
    " ORDER BY j.generation DESC LIMIT 1",
    # A trigger, so that rollbacks by routers of an earlier release are recorded too.
    f"CREATE TRIGGER rollback_is_kept AFTER INSERT ON journal WHEN NEW.action = '{AUTOMATIC}'"
    " BEGIN REPLACE INTO last_rollback VALUES (1, NEW.generation, NEW.time_seconds, NEW.actor, NEW.action, NEW.reason,"
    " NEW.before, NEW.after, NEW.gates, NEW.overridden, 0.0); END",
    # Made with the control store. A copy has the same id, a new control store another one.
    "CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    "INSERT INTO identity VALUES (1, lower(hex(randomblob(16))))",
)
"""Tables and trigger added by schema version 4."""
_ENTRY = "time_seconds, actor, action, reason, before, after, gates, overridden"

T = TypeVar("T")


class SqliteControlStore:
    """A `ControlStore` in a file, which several routers on one host may have open. Made by `open`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._sightings = LeaseObservations(clock)

    def __repr__(self) -> str:
        return f"<SqliteControlStore {self._database!r}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, clock: Clock | None = None) -> AsyncIterator[Self]:
        """Open the file, creating it if there is none, and close it at the end.

        Raises:
            NewerSchema: a newer version of this program made the file.
            ControlUnavailable: the file cannot be used now, or is another database.
        """
        async with AsyncExitStack() as stack:
            with _ours(path):
                database = await stack.enter_async_context(Database.open(path, _migrations(path), _OPTIONS))
            yield cls(database, clock or SystemClock())

    async def load(self) -> Setting:
        found = await self._wait(self._database.read(_find))
        if found is not None:
            return found
        return await self._wait(self._database.write(lambda connection: _start(connection, self._clock.now())))

    async def change(self, entry: JournalEntry) -> bool:
        return await self._wait(self._database.write(lambda connection: _change(connection, entry)))

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        return await self._wait(self._database.read(lambda connection: _journal(connection, limit)))

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        return await self._wait(
            self._database.write(lambda connection: self._lease(connection, name, holder, ttl_seconds))
        )

    async def last_rollback(self) -> LastRollback | None:
        return await self._wait(self._database.read(_last_rollback))

    async def watched(self, generation: int, seconds: float) -> None:
        statement = "UPDATE last_rollback SET watched_seconds = watched_seconds + ? WHERE generation = ?"
        row = (seconds, generation)
        await self._wait(self._database.write(lambda connection: connection.execute(statement, row).close()))

    async def remember(self, name: str, value: str) -> None:
        statement = "REPLACE INTO job VALUES (?, 0, 0, 0, 0, '', ?, 0)"
        row = (name, value)
        await self._wait(self._database.write(lambda connection: connection.execute(statement, row).close()))

    async def remembered(self, name: str) -> str | None:
        statement = "SELECT cursor FROM job WHERE job = ?"
        row = await self._wait(
            self._database.read(lambda connection: connection.execute(statement, (name,)).fetchone())
        )
        return str(row[0]) if row else None

    async def report(self, report: Report) -> None:
        await self._wait(self._database.write(lambda connection: _report(connection, report)))

    async def reports(self) -> Sequence[Report]:
        statement = "SELECT router, number, text FROM report ORDER BY router"
        rows = await self._wait(self._database.read(lambda connection: connection.execute(statement).fetchall()))
        return [Report(*row) for row in rows]

    async def add(self, job: Job) -> Job:
        return await self._wait(self._database.write(lambda connection: sqlite_jobs.add(connection, job)))

    async def put(self, job: Job) -> Job | None:
        return await self._wait(self._database.write(lambda connection: sqlite_jobs.put(connection, job)))

    async def job(self, job_id: str) -> Job:
        return await self._wait(self._database.read(lambda connection: sqlite_jobs.find(connection, job_id)))

    async def jobs(self) -> Sequence[Job]:
        return await self._wait(self._database.read(sqlite_jobs.newest))

    async def info(self) -> ControlInfo:
        statement = "SELECT id FROM identity"
        (found,) = await self._wait(self._database.read(lambda connection: connection.execute(statement).fetchone()))
        return ControlInfo("sqlite", str(self._database.path), id=found)

    def _lease(self, connection: sqlite3.Connection, name: str, holder: str, ttl_seconds: float) -> bool:
        if ttl_seconds <= 0:
            connection.execute("DELETE FROM lease WHERE name = ? AND holder = ?", (name, holder))
            return False
        row = connection.execute("SELECT holder, renewals, ttl_seconds FROM lease WHERE name = ?", (name,)).fetchone()
        if not self._sightings.may_take(name, Lease(*row) if row else None, holder):
            return False
        renewals = row[1] + 1 if row else 1
        connection.execute("REPLACE INTO lease VALUES (?, ?, ?, ?)", (name, holder, renewals, ttl_seconds))
        return True

    async def _wait(self, answer: Awaitable[T]) -> T:
        with _ours(self._database.path):
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    return await answer
            except TimeoutError as error:
                raise ControlUnavailable(f"{self._database.path} did not answer within {_CALL_SECONDS:g} s") from error


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """Raise the database's errors as ControlUnavailable."""
    try:
        yield
    except (LockTimeout, Overloaded, DiskFull, StoreUnavailable) as error:
        raise ControlUnavailable(f"control store {path}: {error.message}") from error


def _migrations(path: Path) -> tuple[Migration, ...]:
    return (
        Migration(1, partial(_make, path)),
        Migration(2, (_REPORT_TABLE,)),
        Migration(3, sqlite_jobs.TABLES),
        Migration(4, _ROLLBACK_TABLES),
    )


def _make(path: Path, connection: sqlite3.Connection) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if tables:
        found = ", ".join(sorted(tables))
        raise ControlUnavailable(
            f"control store {path} is another SQLite database, with the tables {found}: name another file"
        )
    for statement in _TABLES:
        connection.execute(statement)


def _report(connection: sqlite3.Connection, report: Report) -> None:
    """`time_seconds` is a sequence number. An earlier release stored UNIX seconds; numbers continue from the
    highest."""
    (sequence,) = connection.execute("SELECT coalesce(max(time_seconds), 0) + 1 FROM report").fetchone()
    connection.execute("DELETE FROM report WHERE time_seconds < ?", (sequence - KEPT_REPORTS,))
    connection.execute("REPLACE INTO report VALUES (?, ?, ?, ?)", (report.router, report.number, report.text, sequence))


def _find(connection: sqlite3.Connection) -> Setting | None:
    row = connection.execute("SELECT generation, value FROM setting").fetchone()
    return read_setting(*row) if row else None


def _start(connection: sqlite3.Connection, now: float) -> Setting:
    """Store the first setting, unless another router has just stored it."""
    found = _find(connection)
    if found is not None:
        return found
    first = JournalEntry(now, "baton", "start", "", Setting(), Setting(generation=1))
    connection.execute("INSERT INTO setting VALUES (1, 1, ?)", (setting_to_json(first.after),))
    _append(connection, first)
    return first.after


def _change(connection: sqlite3.Connection, entry: JournalEntry) -> bool:
    changed = connection.execute(
        "UPDATE setting SET generation = ?, value = ? WHERE generation = ?",
        (entry.after.generation, setting_to_json(entry.after), entry.before.generation),
    ).rowcount
    if changed:
        _append(connection, entry)
    return bool(changed)


def _append(connection: sqlite3.Connection, entry: JournalEntry) -> None:
    connection.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.after.generation,
            entry.time_seconds,
            entry.actor,
            entry.action,
            entry.reason,
            setting_to_json(entry.before),
            setting_to_json(entry.after),
            gates_to_json(entry.gates),
            entry.overridden,
        ),
    )


def _journal(connection: sqlite3.Connection, limit: int) -> list[JournalEntry]:
    rows = connection.execute(f"SELECT {_ENTRY} FROM journal ORDER BY generation DESC LIMIT ?", (limit,)).fetchall()
    return [_entry(row) for row in rows]


def _last_rollback(connection: sqlite3.Connection) -> LastRollback | None:
    row = connection.execute(f"SELECT {_ENTRY}, watched_seconds FROM last_rollback").fetchone()
    return LastRollback(_entry(row[:-1]), row[-1]) if row else None


def _entry(row: tuple[Any, ...]) -> JournalEntry:
    """The entry in a row with the columns `_ENTRY`."""
    time, actor, action, reason, before, after, gates, overridden = row
    return JournalEntry(
        time,
        actor,
        action,
        reason,
        before=setting_from_json(before),
        after=setting_from_json(after),
        gates=gates_from_json(gates),
        overridden=bool(overridden),
    )

"""The control store in one SQLite file, for all routers on one host. Short transactions, no lock between them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self, TypeVar

from libs.clock import Clock, SystemClock
from libs.store.port import NewerSchema
from services.router.control.codec import gates_from_json, gates_to_json, setting_from_json, setting_to_json
from services.router.control.info import ControlInfo
from services.router.control.leases import Lease, Sightings
from services.router.control.port import ControlUnavailable, JournalEntry, Progress
from services.router.core.phase import Setting

SCHEMA_VERSION = 1

_BUSY_SECONDS = 1.0
_CALL_SECONDS = 1.5

_SCHEMA = (
    "CREATE TABLE control (one INTEGER PRIMARY KEY CHECK (one = 1), schema_version INTEGER NOT NULL)",
    "CREATE TABLE setting (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE journal (generation INTEGER PRIMARY KEY, time_seconds REAL NOT NULL, actor TEXT NOT NULL,"
    " action TEXT NOT NULL, reason TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, gates TEXT NOT NULL,"
    " overridden INTEGER NOT NULL)",
    "CREATE TABLE lease (name TEXT PRIMARY KEY, holder TEXT NOT NULL, renewals INTEGER NOT NULL,"
    " ttl_seconds REAL NOT NULL)",
    "CREATE TABLE job (job TEXT PRIMARY KEY, running INTEGER NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,"
    " rate REAL NOT NULL, note TEXT NOT NULL, cursor TEXT NOT NULL, finished_seconds REAL NOT NULL)",
    "CREATE TRIGGER journal_is_never_changed BEFORE UPDATE ON journal"
    " BEGIN SELECT raise(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER journal_is_never_cut BEFORE DELETE ON journal"
    " BEGIN SELECT raise(ABORT, 'the journal is append-only'); END",
)

T = TypeVar("T")


class SqliteControlStore:
    """A `ControlStore` in a file. Several routers on one host may have it open; use `open` to get one."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._sightings = Sightings(clock)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="control-store")
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Semaphore(1)

    def __repr__(self) -> str:
        return f"<SqliteControlStore {self._path}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, clock: Clock | None = None) -> AsyncIterator[Self]:
        """Opens the file, which is made if there is none, and closes it at the end.

        Raises:
            NewerSchema: the file was made by a newer version of this program.
            ControlUnavailable: the file cannot be used now.
        """
        store = cls(path, clock or SystemClock())
        try:
            await store._run(lambda connection: _prepare(connection, path))
            yield store
        finally:
            await store._close()

    async def load(self) -> Setting:
        return await self._run(lambda connection: _load(connection, self._clock.now()))

    async def change(self, entry: JournalEntry) -> bool:
        return await self._run(lambda connection: _change(connection, entry))

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        return await self._run(lambda connection: _journal(connection, limit))

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        return await self._run(lambda connection: self._lease(connection, name, holder, ttl_seconds))

    async def save(self, progress: Progress) -> None:
        row = (
            progress.job,
            progress.running,
            progress.done,
            progress.total,
            progress.rate,
            progress.note,
            progress.cursor,
            progress.finished_seconds,
        )
        await self._run(
            lambda connection: connection.execute("REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).close()
        )

    async def progress(self, job: str) -> Progress | None:
        row = await self._run(
            lambda connection: connection.execute("SELECT * FROM job WHERE job = ?", (job,)).fetchone()
        )
        return Progress(row[0], bool(row[1]), *row[2:]) if row else None

    async def info(self) -> ControlInfo:
        return ControlInfo("sqlite", str(self._path))

    def _lease(self, connection: sqlite3.Connection, name: str, holder: str, ttl_seconds: float) -> bool:
        with _transaction(connection):
            if ttl_seconds <= 0:
                connection.execute("DELETE FROM lease WHERE name = ? AND holder = ?", (name, holder))
                return False
            row = connection.execute(
                "SELECT holder, renewals, ttl_seconds FROM lease WHERE name = ?", (name,)
            ).fetchone()
            if not self._sightings.may_take(name, Lease(*row) if row else None, holder):
                return False
            renewals = row[1] + 1 if row else 1
            connection.execute("REPLACE INTO lease VALUES (?, ?, ?, ?)", (name, holder, renewals, ttl_seconds))
            return True

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in the store's thread. Raises ControlUnavailable when it fails or takes too long.

        A call that its caller left keeps the others out until it has ended, so nothing piles up behind a slow disk.
        """
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await self._turn.acquire()
                try:
                    future = asyncio.get_running_loop().run_in_executor(self._executor, self._call, work)
                except RuntimeError as error:
                    self._turn.release()
                    raise ControlUnavailable(f"{self._path} is closed") from error
                future.add_done_callback(self._finished)
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise ControlUnavailable(f"{self._path} did not answer within {_CALL_SECONDS:g} s") from error
        except sqlite3.Error as error:
            raise ControlUnavailable(f"{self._path}: {error}") from error

    def _finished(self, future: asyncio.Future[T]) -> None:
        self._turn.release()
        if not future.cancelled():
            future.exception()  # Seen here in case that the caller is gone.

    def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = _connect(self._path)
        return work(self._connection)

    async def _close(self) -> None:
        """What a stuck disk holds up is closed with the process."""
        self._executor.submit(self._disconnect)
        self._executor.shutdown(wait=False)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            return

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL").close()
        connection.execute("PRAGMA synchronous = FULL").close()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection):
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO control VALUES (1, ?)", (SCHEMA_VERSION,))
        elif "control" not in tables:
            raise ControlUnavailable(f"{path} is another SQLite database, it has {', '.join(sorted(tables))}")
        (version,) = connection.execute("SELECT schema_version FROM control").fetchone()
        if version > SCHEMA_VERSION:
            raise NewerSchema(
                f"the control store {path} has schema version {version}, this program knows {SCHEMA_VERSION}:"
                " run the newer program, or restore an older backup"
            )


def _load(connection: sqlite3.Connection, now: float) -> Setting:
    row = connection.execute("SELECT value FROM setting").fetchone()
    if row is not None:
        return setting_from_json(row[0])
    with _transaction(connection):
        row = connection.execute("SELECT value FROM setting").fetchone()
        if row is not None:
            return setting_from_json(row[0])
        first = JournalEntry(now, "baton", "start", "", Setting(), Setting(generation=1))
        connection.execute("INSERT INTO setting VALUES (1, 1, ?)", (setting_to_json(first.after),))
        _append(connection, first)
        return first.after


def _change(connection: sqlite3.Connection, entry: JournalEntry) -> bool:
    with _transaction(connection):
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
    rows = connection.execute(
        "SELECT time_seconds, actor, action, reason, before, after, gates, overridden FROM journal"
        " ORDER BY generation DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [
        JournalEntry(
            time,
            actor,
            action,
            reason,
            before=setting_from_json(before),
            after=setting_from_json(after),
            gates=gates_from_json(gates),
            overridden=bool(overridden),
        )
        for time, actor, action, reason, before, after, gates, overridden in rows
    ]

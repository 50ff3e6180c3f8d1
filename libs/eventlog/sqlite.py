"""The event log in one SQLite file, for processes on one host. A failed append has appended nothing."""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from uuid import uuid4

from libs.clock import Clock, SystemClock
from libs.eventlog.headers import pack, unpack
from libs.eventlog.port import (
    POLL_BYTES,
    Event,
    LogUnavailable,
    OffsetGone,
    Retention,
    Stored,
    TopicUnfit,
    check_poll,
    check_positions,
    check_time,
    place,
)

SCHEMA_VERSION = 1

_BUSY_SECONDS = 5.0
_CALL_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.05

_IDENTITY = "CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)"
"""A table of its own, so that a program of the previous release can open the file."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS log (one INTEGER PRIMARY KEY CHECK (one = 1),"
    " schema_version INTEGER NOT NULL, partitions INTEGER NOT NULL)",
    _IDENTITY,
    "CREATE TABLE IF NOT EXISTS part (part INTEGER PRIMARY KEY, oldest INTEGER NOT NULL, next INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS event (part INTEGER NOT NULL, at INTEGER NOT NULL, key TEXT NOT NULL,"
    " value BLOB NOT NULL, headers BLOB NOT NULL, time REAL NOT NULL, PRIMARY KEY (part, at))",
)

_Result = TypeVar("_Result")


class _Connection:
    """One connection and the thread that uses it. A call that outlives its caller blocks the others."""

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """`prepare`: run on each new connection, before any work."""
        self._path = path
        self._prepare = prepare
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"eventlog-{path.name}")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self.id = ""
        self.opened = 0
        """Number of times the connection was opened."""
        self._slot = asyncio.Semaphore(1)
        self._closed = False

    async def run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` in the thread and return its result. Raises LogUnavailable if it fails or takes too long."""
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await self._slot.acquire()
                if self._closed:
                    self._slot.release()
                    raise LogUnavailable(f"{self._path} is closed")
                future = asyncio.get_running_loop().run_in_executor(self._executor, self._call, work)
                # The semaphore is released with the end of the work, not of the caller: no work piles up behind a slow
                # disk.
                future.add_done_callback(self._finished)
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise LogUnavailable(f"{self._path} did not answer within {_CALL_SECONDS:g} s") from error
        except sqlite3.Error as error:
            raise LogUnavailable(f"{self._path}: {error}") from error

    async def close(self) -> None:
        if self._closed:
            return
        # A connection that a stuck disk blocks is closed with the process.
        with suppress(LogUnavailable):
            if self._connection is not None:
                await self.run(lambda connection: connection.close())
        self._closed = True
        self._executor.shutdown(wait=False)

    def _finished(self, future: "asyncio.Future[_Result]") -> None:
        self._slot.release()
        if not future.cancelled():
            future.exception()  # The exception is retrieved here, in case the caller has left.

    def _call(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        self._close_replaced()
        if self._connection is None:
            self._connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._file = self._file_now()
            self.opened += 1
            try:
                if self._prepare is not None:
                    self._prepare(self._connection)
                self.id = _read_id(self._connection)
            except BaseException:
                self._connection.close()
                self._connection = None
                raise
        return work(self._connection)

    def _close_replaced(self) -> None:
        """Close the connection if another file took the place of this one, which other processes no longer see."""
        if self._connection is not None and self._file_now() != self._file:
            self._connection.close()
            self._connection, self.id = None, ""

    def _file_now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


class SqliteEventLog:
    """An `EventLog` in a file, made by `open`. Several objects and processes may use one file."""

    def __init__(self, path: Path, partitions: int, clock: Clock) -> None:
        self._path = path
        self._partitions = partitions
        self._clock = clock
        self._connection = _Connection(path, lambda connection: _prepare(connection, path, partitions))

    def __repr__(self) -> str:
        return f"<SqliteEventLog {self._path} partitions={self._partitions}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, partitions: int = 16, *, clock: Clock | None = None) -> AsyncIterator[Self]:
        """Open the log in `path`, which is created if it is missing, and close it at the end.

        Raises:
            TopicUnfit: the file is not a log, has a newer schema or another number of partitions.
            LogUnavailable: the file cannot be used now.
        """
        if partitions < 1:
            raise ValueError(f"partitions is {partitions}; it must be at least 1")
        log = cls(path, partitions, clock or SystemClock())
        try:
            await log._connection.run(lambda connection: None)
            yield log
        finally:
            await log.close()

    @property
    def partitions(self) -> int:
        return self._partitions

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def id(self) -> str:
        return self._connection.id

    @property
    def retention(self) -> Retention:
        return Retention()

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        placed = place(events, partition, self._partitions)
        if placed:
            await self._connection.run(lambda connection: _append(connection, placed, self._clock.now()))

    @asynccontextmanager
    async def reader(self, positions: Mapping[int, int]) -> AsyncIterator["_SqliteReader"]:
        connection = _Connection(self._path)
        try:
            yield _SqliteReader(connection, check_positions(positions, self._partitions))
        finally:
            await connection.close()

    async def ends(self) -> dict[int, tuple[int, int]]:
        return await self._connection.run(_ends)

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        check_time(time_seconds)
        # The query scans all events. On a connection of its own it does not block appends.
        connection = _Connection(self._path)
        try:
            return await connection.run(partial(_offsets_at, time_seconds))
        finally:
            await connection.close()

    async def trim(self, partition: int, oldest: int) -> None:
        """Drop the events of `partition` below the offset `oldest`; offsets beyond the end count as the end."""
        await self._connection.run(lambda connection: _trim(connection, partition, oldest))

    async def close(self) -> None:
        await self._connection.close()


class _SqliteReader:
    def __init__(self, connection: _Connection, positions: dict[int, int]) -> None:
        self._connection = connection
        self._positions = positions

    @property
    def epoch(self) -> int:
        return self._connection.opened

    async def poll(self, limit: int, wait_seconds: float) -> list[Stored]:
        check_poll(limit, wait_seconds)
        deadline = time.monotonic() + wait_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            positions = dict(self._positions)
            found = await self._connection.run(partial(_read, positions=positions, limit=limit))
            for stored in found:
                self._positions[stored.partition] = stored.offset + 1
            left = deadline - time.monotonic()
            if found:
                # The partition that was read last comes last at the next poll, so that a busy one cannot starve the
                # others.
                last = found[-1].partition
                self._positions[last] = self._positions.pop(last)
            if found or left <= 0:
                return found
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _prepare(connection: sqlite3.Connection, path: Path, partitions: int) -> None:
    try:
        connection.execute("PRAGMA synchronous = FULL")
        _enter_wal(connection)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise TopicUnfit(f"{path} is not an SQLite database; name another file") from error
    if tables and "log" not in tables:
        raise TopicUnfit(f"{path} is another SQLite database, it has {', '.join(sorted(tables))}; name another file")
    with _transaction(connection):
        for table in _TABLES if not tables else (_IDENTITY,):
            connection.execute(table)
        connection.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (uuid4().hex,))
        connection.execute("INSERT OR IGNORE INTO log VALUES (1, ?, ?)", (SCHEMA_VERSION, partitions))
        version, found = connection.execute("SELECT schema_version, partitions FROM log").fetchone()
        if version > SCHEMA_VERSION:
            raise TopicUnfit(
                f"{path} has schema version {version}, this program knows {SCHEMA_VERSION}; use a newer one"
            )
        if found != partitions:
            raise TopicUnfit(f"{path} has {found} partitions, the settings say {partitions}; make them equal")
        rows = [(number, 0, 0) for number in range(partitions)]
        connection.executemany("INSERT OR IGNORE INTO part VALUES (?, ?, ?)", rows)


def _read_id(connection: sqlite3.Connection) -> str:
    try:
        (found,) = connection.execute("SELECT id FROM identity").fetchone() or ("",)
    except sqlite3.OperationalError:
        # The file is being created, or the previous release created it and is the only one to open it.
        return ""
    return str(found)


def _enter_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # If two processes switch a new file at once, SQLite refuses one without waiting for the busy timeout.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.005, 0.02))
        else:
            if mode != "wal":
                raise TopicUnfit(f"the file system cannot hold a log, journal_mode is {mode!r}; use a local disk")
            return


def _append(connection: sqlite3.Connection, placed: list[tuple[int, Event]], now: float) -> None:
    with _transaction(connection):
        following = dict(connection.execute("SELECT part, next FROM part"))
        rows = []
        for number, event in placed:
            rows.append((number, following[number], event.key, event.value, pack(event.headers), now))
            following[number] += 1
        connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", rows)
        touched = [(following[number], number) for number in {number for number, _ in placed}]
        connection.executemany("UPDATE part SET next = ? WHERE part = ?", touched)


def _ends(connection: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    return {number: (oldest, end) for number, oldest, end in connection.execute("SELECT * FROM part ORDER BY part")}


def _offsets_at(time_seconds: float, connection: sqlite3.Connection) -> dict[int, int]:
    found = connection.execute(
        "SELECT part, coalesce("
        "(SELECT at FROM event WHERE event.part = part.part AND time >= ? ORDER BY at LIMIT 1), next) FROM part",
        (time_seconds,),
    )
    return dict(found.fetchall())


def _trim(connection: sqlite3.Connection, partition: int, oldest: int) -> None:
    with _transaction(connection):
        connection.execute("UPDATE part SET oldest = max(oldest, min(next, ?)) WHERE part = ?", (oldest, partition))
        connection.execute(
            "DELETE FROM event WHERE part = ? AND at < (SELECT oldest FROM part WHERE part = ?)", (partition, partition)
        )


def _read(connection: sqlite3.Connection, positions: dict[int, int], limit: int) -> list[Stored]:
    found: list[Stored] = []
    room = POLL_BYTES
    # One snapshot for ends and events: retention between the two would look like a gap.
    with _transaction(connection, "BEGIN"):
        ends = _ends(connection)
        for number, position in positions.items():
            oldest, end = ends[number]
            if not oldest <= position <= end:
                if found:
                    break
                raise OffsetGone(number, position, oldest)
            if position == end:
                continue
            rows = connection.execute(
                "SELECT at, CAST(key AS BLOB), CAST(value AS BLOB), CAST(headers AS BLOB), CAST(time AS REAL)"
                " FROM event WHERE part = ? AND at >= ? AND typeof(at) = 'integer' ORDER BY at LIMIT ?",
                (number, position, limit - len(found)),
            )
            for at, key, value, headers, appended in rows:
                # Casts and replacements, since other programs may have written any value.
                event = Event(key.decode(errors="replace"), value, unpack(headers))
                found.append(Stored(number, at, event, appended))
                room -= len(value) + len(headers)
                if room <= 0:
                    break
            rows.close()
            if len(found) == limit or room <= 0:
                break
    return found

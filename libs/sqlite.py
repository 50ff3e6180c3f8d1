"""One SQLite file with one writer: a thread that commits queued jobs in groups, and threads that read beside it.

Reads of one row by its key run in the event loop's thread (`libs.sqlite_inline`).

A job is a function of the connection that runs in the writer's thread inside a transaction. It never awaits, so nothing
is interleaved with it. Jobs that wait together share one transaction and one disk flush. Each is undone by itself if it
raises, and none is answered before the commit. WAL with `synchronous=FULL`: a commit survives a power loss.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from libs.errors import BatonError, DiskFull, LockTimeout, NewerSchema, Overloaded, StoreUnavailable
from libs.sqlite_inline import InlineReader, Unfit

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP_JOBS = 64
"""Maximum number of jobs per transaction, which limits the wait for an answer."""
GROUP_SECONDS = 0.02
"""Time after which a group takes no more jobs."""
_CLOSE_SECONDS = 10.0


class AlreadyOpen(BatonError):
    """Another process has this database open: stop it first."""


_ERRORS: dict[int, type[BatonError]] = {
    sqlite3.SQLITE_FULL: DiskFull,
    sqlite3.SQLITE_BUSY: LockTimeout,
    sqlite3.SQLITE_LOCKED: LockTimeout,
    sqlite3.SQLITE_IOERR: StoreUnavailable,
    sqlite3.SQLITE_CANTOPEN: StoreUnavailable,
    sqlite3.SQLITE_READONLY: StoreUnavailable,
    sqlite3.SQLITE_CORRUPT: StoreUnavailable,
    sqlite3.SQLITE_NOTADB: StoreUnavailable,
    sqlite3.SQLITE_NOMEM: StoreUnavailable,
    sqlite3.SQLITE_PROTOCOL: StoreUnavailable,
    sqlite3.SQLITE_INTERRUPT: StoreUnavailable,
}
"""Errors by primary result code. Every other error of SQLite is a defect of this program and stays as it is."""


def error_of(error: BaseException, path: Path) -> BaseException:
    """The error that callers get for an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    ours = _ERRORS.get(code & 0xFF) if isinstance(code, int) else None
    return error if ours is None else ours(detail=f"{path}: {error}")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema: statements, or a function that runs them. It is atomic."""

    number: int
    steps: Sequence[str] | Callable[[sqlite3.Connection], None]

    def run(self, connection: sqlite3.Connection) -> None:
        if callable(self.steps):
            self.steps(connection)
        else:
            for statement in self.steps:
                connection.execute(statement)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """An atomic transaction, for use outside of the writer's jobs."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """One snapshot for all statements, as of the first one. For reads, on a reader's connection."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], path: Path) -> None:
    """Upgrade the file to the newest schema, whose number it keeps in `user_version`. Raises NewerSchema."""
    for migration in migrations:
        with transaction(connection):
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > migrations[-1].number:
                raise NewerSchema(
                    f"{path} has schema {found}, this program knows {migrations[-1].number}: "
                    "run the newer version or restore an older backup"
                )
            if found < migration.number:
                migration.run(connection)
                connection.execute(f"PRAGMA user_version = {migration.number}")


def connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection in autocommit mode that flushes at every commit, usable from any thread."""
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        _enter_wal(connection, busy_seconds)
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _connections(path: Path, count: int, busy_seconds: float) -> list[sqlite3.Connection]:
    """All or, if one fails, none."""
    with ExitStack() as opened:
        found = [opened.enter_context(closing(connect(path, busy_seconds))) for _ in range(count)]
        opened.pop_all()
    return found


def _enter_wal(connection: sqlite3.Connection, busy_seconds: float) -> None:
    deadline = time.monotonic() + busy_seconds
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
                raise StoreUnavailable(
                    f"the file system cannot hold the database (journal mode {mode}): use a local disk"
                )
            return


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock the database against other processes while the block runs, whatever path they use for it.

    Raises AlreadyOpen. A symbolic link is resolved. A hard link is another path of the same device and inode, so the
    database file is locked too. The two files are closed after the database: closing any descriptor of a file drops the
    process's own POSIX locks on it, which SQLite relies on.
    """
    real = path.resolve()
    # The file is left behind: if it were removed, a third process could lock a new file beside the old one's lock.
    lock = real.with_name(real.name + ".lock")
    with ExitStack() as held:
        for file in (lock, real):
            number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.callback(os.close, number)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyOpen(
                    f"{path} is open in another process (it holds a lock on {file}): stop that one first"
                ) from None
        if os.stat(real).st_mode & 0o007:
            log.warning("%s can be read or changed by every user of this machine: chmod o-rwx %s", path, real)
        yield


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    committed: Callable[[], None] | None
    result: Any = None
    error: BaseException | None = None

    def deliver(self) -> None:
        """Runs in the event loop, after the commit."""
        if self.committed is not None and self.error is None:
            self.committed()
        if self.future.done():  # The caller has left.
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


@dataclass(frozen=True, slots=True)
class Options:
    exclusive: bool = True
    """No other process may open the file. If False, processes share it by SQLite's own locks."""
    readers: int = 2
    queue_jobs: int = 4096
    """Maximum number of waiting writes, and of waiting reads; more are refused with Overloaded."""
    busy_seconds: float = 5.0
    """How long to wait for another process's transaction."""


class Database:
    """An open file, made by `open` and used from the event loop that opened it."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.lost_commits = 0
        """Number of transactions that failed as a whole. State cached from their jobs must be read again."""
        self.transactions = 0
        """Number of transactions of jobs that have begun. Jobs of one group see the same number."""
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._queues: tuple[deque[_Job[Any]], deque[_Job[Any]]] = (deque(), deque())
        self._ready = threading.Condition()
        self._closing = False
        self._broken = False
        """The writer's connection is closed, after a transaction that could not be undone."""
        self._migrating = False
        self._writer, inline, *self._readers = _connections(path, 2 + options.readers, options.busy_seconds)
        self._inline = InlineReader(inline)
        self._idle = deque(self._readers)
        self._pool = ThreadPoolExecutor(options.readers, thread_name_prefix=f"read-{path.name}")
        self._reads = 0
        self._thread = threading.Thread(target=self._serve, name=f"write-{path.name}", daemon=True)

    def __repr__(self) -> str:
        client, background = map(len, self._queues)
        return f"<Database {self.path} waiting={client}+{background} reads={self._reads}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, migrations: Sequence[Migration] = (), options: Options | None = None
    ) -> AsyncIterator[Self]:
        """Open the file, which is created if it is missing, and upgrade its schema.

        Raises AlreadyOpen, NewerSchema, StoreUnavailable, DiskFull, LockTimeout.
        """
        options = options or Options()
        with exclusive(path) if options.exclusive else nullcontext():
            try:
                database = cls(path, options)
            except sqlite3.Error as error:
                raise error_of(error, path) from error
            database._thread.start()
            try:
                # In the pool, which `_close` waits for: a cancelled opener leaves the migration running, and closing a
                # connection during a statement crashes the process.
                await database._loop.run_in_executor(database._pool, database._migrate, migrations)
                yield database
            finally:
                # In the loop's thread, where no read runs now.
                database._inline.close()
                await asyncio.shield(asyncio.to_thread(database._close))

    async def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        background: bool = False,
        committed: Callable[[], None] | None = None,
    ) -> T:
        """Run `work` in a transaction and return its result after the commit.

        An exception of `work` undoes it alone. `background`: jobs of clients go first. `committed` is called in the
        event loop after the commit, even if the caller has left by then; if a caller leaves earlier, the change is
        complete or absent. Raises Overloaded, and the errors of the table above; after StoreUnavailable the outcome is
        unknown.
        """
        queue = self._queues[background]
        job: _Job[T] = _Job(work, self._loop.create_future(), committed)
        # The writer decides to end under the same lock, so a queued job is always answered.
        with self._ready:
            if self._closing:
                raise StoreUnavailable(f"{self.path} is closed")
            if len(queue) >= self._options.queue_jobs:
                raise Overloaded(f"{len(queue)} writes wait for {self.path}: try again a little later")
            queue.append(job)
            self._ready.notify()
        return await job.future

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, one statement or one `snapshot`, on a connection without an open transaction: it sees all commits
        before its begin. Raises Overloaded, and the errors of the table above."""
        if self._closing:
            raise StoreUnavailable(f"{self.path} is closed")
        if self._reads >= self._options.queue_jobs:
            raise Overloaded(f"{self._reads} reads wait for {self.path}: try again a little later")
        self._reads += 1
        future: asyncio.Future[T] = self._loop.run_in_executor(self._pool, self._read, work)
        future.add_done_callback(self._read_done)
        return await future

    async def read_point(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Like `read`, for one statement that finds a row by its key: in this thread, unless that would block it."""
        try:
            return self._inline.read(work)
        except Unfit:
            return await self.read(work)
        except sqlite3.Error as error:
            raise error_of(error, self.path) from error

    def _read_done(self, future: asyncio.Future[Any]) -> None:
        self._reads -= 1

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._idle.pop()
        try:
            return work(connection)
        except sqlite3.Error as error:
            raise error_of(error, self.path) from error
        finally:
            self._idle.append(connection)

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        self._migrating = True
        try:
            migrate(self._writer, migrations, self.path)
        except sqlite3.Error as error:
            raise error_of(error, self.path) from error
        finally:
            self._migrating = False

    def _serve(self) -> None:
        """The writer's thread. Client jobs and background jobs alternate, so that neither starves."""
        client, background = self._queues
        after_client = False
        while True:
            with self._ready:
                while not any(self._queues) and not self._closing:
                    self._ready.wait()
                if not any(self._queues):
                    return
            queue = background if background and (after_client or not client) else client
            after_client = queue is client
            self._group(queue)

    def _group(self, queue: deque[_Job[Any]]) -> None:
        """Run one transaction of waiting jobs and answer them after the commit."""
        done: list[_Job[Any]] = []
        try:
            self._run(queue, done)
        except BaseException as error:  # noqa: BLE001 - each job of the group gets it
            self.lost_commits += 1
            for job in done:
                # Including jobs that raised: they may have seen the work of other jobs in the group.
                job.error = error_of(error, self.path)
            self._undo()
        self._loop.call_soon_threadsafe(_deliver, done)

    def _undo(self) -> None:
        """Close any open transaction. If SQLite cannot undo it, closing the connection does, and the next job opens
        one."""
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.error("%s: a transaction could not be undone, its connection is opened anew: %s", self.path, error)
            self._broken = True
            with suppress(sqlite3.Error):
                self._writer.close()

    def _open_again(self) -> None:
        """Raises sqlite3.Error for the job that needs the connection; the next job tries again."""
        self._writer = connect(self.path, self._options.busy_seconds)
        self._broken = False

    def _run(self, queue: deque[_Job[Any]], done: list[_Job[Any]]) -> None:
        client, background = self._queues
        until = time.monotonic() + GROUP_SECONDS
        while queue and len(done) < GROUP_JOBS and time.monotonic() < until:
            if done and client and queue is background:
                # A client waits for one background job, not for a group of them.
                break
            job = queue.popleft()
            if job.future.cancelled():
                continue
            done.append(job)
            if self._broken:
                self._open_again()
            if not self._writer.in_transaction:
                # The first job needs no savepoint: undoing it undoes the transaction.
                self._writer.execute("BEGIN IMMEDIATE")
                self.transactions += 1
                self._attempt(job, "ROLLBACK")
                continue
            self._writer.execute("SAVEPOINT job")
            self._attempt(job, "ROLLBACK TO job")
            self._writer.execute("RELEASE job")
        if done and self._writer.in_transaction:
            self._writer.execute("COMMIT")

    def _attempt(self, job: _Job[Any], undo: str) -> None:
        try:
            job.result = job.work(self._writer)
        except BaseException as error:
            if not self._writer.in_transaction:
                # SQLite has undone the transaction (a full disk), so all its jobs are lost.
                raise
            job.error = error_of(error, self.path)
            self._writer.execute(undo)

    def _close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join(_CLOSE_SECONDS)
        with self._ready:
            left = [job for queue in self._queues for job in queue]
            for queue in self._queues:
                queue.clear()
        for job in left:
            # Only if the writer did not end in time.
            job.error = StoreUnavailable(f"{self.path} is closed")
        if left:
            self._loop.call_soon_threadsafe(_deliver, left)
        # Only an interrupted migration needs the writer's connection here: an interrupt would also stop the checkpoint
        # of its close, and leave the newest commits in the write-ahead log beside the file.
        for connection in [*self._readers, *([self._writer] if self._migrating else [])]:
            connection.interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for connection in [*self._readers, *([] if self._thread.is_alive() else [self._writer])]:
            connection.close()


def _deliver(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        job.deliver()

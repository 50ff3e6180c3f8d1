"""Point reads in the event loop's thread, and the pool as their way out."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.errors import StoreUnavailable
from libs.sqlite import Database, Migration
from libs.sqlite_inline import (
    LONG_PAUSE,
    LONG_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MOST_SLOW,
    PAUSE_SECONDS,
    SLOW_SECONDS,
    WINDOW_READS,
    InlineReader,
    Unfit,
)

TABLE = Migration(1, ("CREATE TABLE note (word TEXT)", "INSERT INTO note VALUES ('x')"))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "d.db", (TABLE,)) as database:
        yield database


def thread_of(connection: sqlite3.Connection) -> int:
    assert connection.execute("SELECT word FROM note").fetchone() == ("x",)
    return threading.get_ident()


async def test_a_point_read_takes_no_thread(database: Database) -> None:
    assert await database.read_point(thread_of) == threading.get_ident()
    assert await database.read(thread_of) != threading.get_ident()


async def test_a_point_read_sees_the_last_commit(database: Database) -> None:
    assert await database.read_point(thread_of)
    await database.write(lambda connection: connection.execute("UPDATE note SET word = 'y'") and None)
    assert await database.read_point(lambda one: one.execute("SELECT word FROM note").fetchone()) == ("y",)


async def test_a_busy_database_does_not_block_the_loop(database: Database) -> None:
    """A busy file answers at once here; the pool waits for it."""
    asked: list[int] = []

    def busy_once(connection: sqlite3.Connection) -> int:
        asked.append(threading.get_ident())
        (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
        if len(asked) == 1:
            assert timeout == 0
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        assert timeout > 0
        return thread_of(connection)

    assert await database.read_point(busy_once) == asked[1] != threading.get_ident()


async def test_an_error_of_sqlite_is_the_callers(database: Database) -> None:
    def broken(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    with pytest.raises(StoreUnavailable):
        await database.read_point(broken)


async def test_a_closed_database_refuses_point_reads(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "d.db", (TABLE,)) as database:
        pass
    with pytest.raises(StoreUnavailable):
        await database.read_point(thread_of)


class Reads:
    """Reads of a given duration on a reader with a clock of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.reader = InlineReader(sqlite3.connect(":memory:"), self.clock.monotonic)

    def take(self, seconds: float) -> bool:
        """Whether the read ran here."""
        try:
            self.reader.read(lambda _: self.clock.advance(seconds))
        except Unfit:
            return False
        return True


def test_reads_leave_the_loop_while_they_are_slow() -> None:
    reads = Reads()
    slow = 2 * SLOW_SECONDS
    assert all(reads.take(slow) for _ in range(MOST_SLOW + 1))
    assert not reads.take(0)
    reads.clock.advance(PAUSE_SECONDS)
    assert all(reads.take(0) for _ in range(WINDOW_READS))


def test_few_slow_reads_are_accepted_in_each_window() -> None:
    reads = Reads()
    for _ in range(3):
        assert all(reads.take(2 * SLOW_SECONDS) for _ in range(MOST_SLOW))
        assert all(reads.take(SLOW_SECONDS / 2) for _ in range(WINDOW_READS - MOST_SLOW))


@pytest.mark.parametrize("stall", [2 * LONG_SECONDS, 3600.0])
def test_a_read_that_stalls_the_loop_keeps_reads_out_of_it_for_much_longer(stall: float) -> None:
    reads = Reads()
    assert reads.take(stall)
    pause = min(stall * LONG_PAUSE, LONGEST_PAUSE_SECONDS)
    reads.clock.advance(pause * 0.99)
    assert not reads.take(0)
    reads.clock.advance(pause * 0.02)
    assert reads.take(0)

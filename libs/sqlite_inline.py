"""Point reads of SQLite in the event loop's own thread.

Such a read takes a few microseconds, and its way through a thread pool fifty. But it blocks the event loop, so it must
never wait: the connection has no busy timeout, and while reads are slow (a disk that must be asked, a file too large
for the page cache) they go to the pool.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SLOW_SECONDS = 0.001
"""A read that takes longer is slow."""
WINDOW_READS = 200
"""Number of reads after which the slow ones among them are counted."""
MOST_SLOW = WINDOW_READS // 100
"""Slow reads of a window that are accepted: the P99 is not above SLOW_SECONDS."""
PAUSE_SECONDS = 1.0
"""Time for which reads go to the pool after a slow window."""
LONG_SECONDS = 0.02
"""A read that takes longer (a disk that stands still, a row of many megabytes) delays every call of the process."""
LONG_PAUSE = 100
"""Time for which reads go to the pool after a long one, as a multiple of its duration: such reads take 1 % of the event
loop's time at most."""
LONGEST_PAUSE_SECONDS = 60.0
"""Limit of the time after a long read. The process itself may have been paused during that read."""


class Unfit(Exception):
    """The read did not run here: run it in the pool."""


class InlineReader:
    """One connection, used by the event loop's thread only, which closes it too."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float] = time.perf_counter) -> None:
        connection.execute("PRAGMA busy_timeout = 0")
        self._connection: sqlite3.Connection | None = connection
        self._clock = clock
        self._reads = 0
        self._slow = 0
        self._resumes_at = 0.0

    def __repr__(self) -> str:
        return f"<InlineReader reads={self._reads} slow={self._slow}>"

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Raises Unfit, and sqlite3.Error."""
        connection, began = self._connection, self._clock()
        if connection is None or began < self._resumes_at:
            raise Unfit
        try:
            return work(connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Unfit from None
            raise
        finally:
            self._note(self._clock(), began)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _note(self, now: float, began: float) -> None:
        took = now - began
        self._reads += 1
        self._slow += took > SLOW_SECONDS
        if took > LONG_SECONDS:
            self._resumes_at = now + min(took * LONG_PAUSE, LONGEST_PAUSE_SECONDS)
        elif self._slow > MOST_SLOW:
            self._resumes_at = now + PAUSE_SECONDS
        elif self._reads < WINDOW_READS:
            return
        self._reads = self._slow = 0

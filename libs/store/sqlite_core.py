"""Shared code of the ports of a store on SQLite: look-ups, old rows, and counts of the outbox."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from libs.clock import Clock
from libs.ownership.limits import RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import BucketOwner, Call, Found, Row, Served, Store, Version, bucket_of, visible
from libs.sqlite import Database
from libs.store.concurrency import Notifier
from libs.store.limits import HELD_NOTHING, HELD_SECONDS, Held, OutboxLimits
from libs.store.outbox import ChangeEntry, Depth
from libs.store.sqlite_fill import Fill
from libs.store.sqlite_schema import (
    ROW_COLUMNS,
    Layout,
    Statements,
    bucket_owner_from,
    row_from,
)

_CHANGED = "UPDATE standing SET changes = changes + 1"
_OLDEST = "SELECT (SELECT seconds FROM tick) - tick FROM outbox ORDER BY id LIMIT 1"
_OLDEST_SECONDS = 1.0
"""Time for which the age of the oldest entry is reused, unless entries were removed."""


class OutboxBook:
    """Counts of the outbox, kept in memory by its only writer. Used in the writer's thread."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._held = HELD_NOTHING
        self._held_until = float("-inf")
        self._known_at: int | None = None
        self._entries = 0
        self._bytes = 0
        self._oldest = 0.0
        self._oldest_until = float("-inf")
        self._counted_in = 0
        """The last transaction that was counted as a change of this store."""

    @contextmanager
    def job(self, connection: sqlite3.Connection, lost_commits: int) -> Iterator[None]:
        """Run the block as a job that changes the outbox. If it raises, or if its commit is lost, the counts are
        corrected."""
        if self._known_at != lost_commits:
            row = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM outbox").fetchone()
            self._entries, self._bytes = row
            self._known_at = lost_commits
        before = self._entries, self._bytes
        try:
            yield
        except BaseException:
            self._entries, self._bytes = before
            self._counted_in = 0
            raise

    def add(self, connection: sqlite3.Connection, entries: Sequence[ChangeEntry]) -> None:
        connection.executemany(
            "INSERT INTO outbox (key, term, revision, size, tick, traceparent, event)"
            " SELECT ?, ?, ?, ?, seconds, ?, ? FROM tick",
            [(one.key, *one.version, len(one.event), one.traceparent, one.event) for one in entries],
        )
        self._entries += len(entries)
        self._bytes += sum(len(one.event) for one in entries)

    def held(self, connection: sqlite3.Connection) -> Held:
        """Return an upper bound: the file without the outbox is at least as large as the rows and served requests in
        it."""
        if time.monotonic() >= self._held_until:
            (rows,) = connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
            self._held = Held(rows, max(size - self._bytes, 0))
            self._held_until = time.monotonic() + HELD_SECONDS
        return self._held

    def depth(self, connection: sqlite3.Connection) -> Depth:
        if time.monotonic() >= self._oldest_until:
            oldest = connection.execute(_OLDEST).fetchone()
            self._oldest = oldest[0] if oldest else 0.0
            self._oldest_until = time.monotonic() + _OLDEST_SECONDS
        return Depth(self._entries, self._bytes, self._oldest)

    def count_change(self, connection: sqlite3.Connection, transaction: int) -> None:
        """Count a transaction in which the store makes changes of its own, once for all its jobs."""
        if self._counted_in != transaction:
            connection.execute(_CHANGED)
            self._counted_in = transaction

    def removed(self, sizes: Sequence[int]) -> None:
        self._oldest_until = float("-inf")
        self._entries -= len(sizes)
        self._bytes -= sum(sizes)


class Core:
    """One open store. Methods that take a connection run inside a job of the writer."""

    def __init__(
        self,
        store: Store,
        database: Database,
        layout: Layout,
        clock: Clock,
        limits: OutboxLimits,
        fill: Fill | None = None,
    ) -> None:
        self.store = store
        self.database = database
        self.layout = layout
        self.clock = clock
        self.statements = Statements(layout)
        self.limits = limits
        self.book = OutboxBook(layout.table)
        self._fill = fill
        self.changed = asyncio.Event()
        """Set after each commit that may have added to the outbox."""
        self.written = Notifier()
        """Notifies after each commit that may have written a record."""

    @property
    def fill(self) -> Fill | None:
        """The completion of old rows; None if all are completed."""
        return None if self._fill is None or self._fill.over else self._fill

    def complete(self, connection: sqlite3.Connection, keys: Sequence[str]) -> None:
        """Complete the old rows of these records. Call it before a decision is made on them."""
        if (fill := self.fill) is not None:
            fill.rows.complete(connection, keys)

    def old_rows(self, connection: sqlite3.Connection, keys: Sequence[str]) -> Mapping[str, Row]:
        """Return the old rows of these records. A reader calls it before it reads the table (see
        `libs.store.sqlite_old`)."""
        fill = self.fill
        return {} if fill is None else fill.rows.rows(connection, keys)

    def check_complete(self, action: str) -> None:
        """Raise StillFilling if old rows are not completed and `action` needs all of them."""
        if (fill := self.fill) is not None:
            fill.check(action)

    def committed(self) -> None:
        """Notify waiting callers after the commit of a record's write or release."""
        self.changed.set()
        self.written.notify()

    def outbox_job(self, connection: sqlite3.Connection) -> AbstractContextManager[None]:
        return self.book.job(connection, self.database.lost_commits)

    def find(self, connection: sqlite3.Connection, key: str, call: Call | None = None) -> Found:
        """Return row, bucket owner and, for a call, the served requests of its id, read in one statement."""
        bucket = bucket_of(key)
        if call is None:
            return found_from(key, connection.execute(self.statements.read, (key, bucket)).fetchone())
        # One line for each served request of the id; one line if there is none.
        lines = connection.execute(self.statements.find, (key, key, call.request_id, bucket)).fetchall()
        values = lines[0]
        served = () if values[_SERVED] is None else tuple(_served_of(call.request_id, line) for line in lines)
        found = found_from(key, values, served)
        if found.row is None or not values[-1]:
            return found
        return replace(found, row=replace(found.row, lease_seconds=values[-1]))


def with_old(found: Found, old: Mapping[str, Row]) -> Found:
    """Add the old row, which was read before, if the table has none."""
    if found.row is not None or found.key not in old:
        return found
    return replace(found, row=visible(old[found.key], found.bucket_owner))


def found_from(key: str, values: Sequence[Any], served: tuple[Served, ...] = ()) -> Found:
    """Decode ROW and BUCKET."""
    bucket_owner: BucketOwner = bucket_owner_from(values[ROW_COLUMNS : ROW_COLUMNS + 4])
    return Found(key, visible(row_from(values[:ROW_COLUMNS]), bucket_owner), bucket_owner, served)


_SERVED = ROW_COLUMNS + 4
"""Index of the served request's principal in a line of `Statements.find`."""


def _served_of(request_id: str, line: Sequence[Any]) -> Served:
    principal, request_hash, term, revision, answer = line[_SERVED : _SERVED + 5]
    return Served(principal, request_id, request_hash, Version(term, revision), answer)


WITH_SERVED = "SELECT n.value FROM json_each(?) n WHERE EXISTS (SELECT 1 FROM served s WHERE s.key = n.value)"
"""Selects the given keys that have served requests."""

_WINDOW = (
    "SELECT principal, request_id, request_hash, term, revision, answer FROM served"
    " WHERE key = ? AND term = ? AND revision <= ? AND learned >= (SELECT seconds FROM tick) - ?"
    " ORDER BY revision DESC, principal DESC, request_id DESC LIMIT ?"
)


def served_up_to(connection: sqlite3.Connection, effects: Sequence[tuple[str, Version]]) -> list[tuple[str, Served]]:
    """See `Transaction.served`."""
    return [
        (key, Served(principal, request_id, request_hash, Version(term, revision), answer))
        for key, version in effects
        for principal, request_id, request_hash, term, revision, answer in connection.execute(
            _WINDOW, (key, *version, RETRY_WINDOW_SECONDS, SERVED_WINDOW)
        )
    ]

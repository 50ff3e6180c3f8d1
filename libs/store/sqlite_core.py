"""What the ports of a store on SQLite share: finding, changing and learning inside the writer's transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from libs.clock import Clock
from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner, OutboxFull
from libs.ownership.limits import RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import Absence, Call, Found, Record, Row, Served, Store, Version, bucket_of, visible
from libs.ownership.rules import may_change
from libs.ownership.terms import contained
from libs.ownership.wire import event_of
from libs.sqlite import Database
from libs.store.limits import HELD_NOTHING, HELD_SECONDS, Held, OutboxLimits
from libs.store.port import Depth
from libs.store.pulse import Pulse
from libs.store.sqlite_fill import Fill
from libs.store.sqlite_schema import (
    LEARN,
    ROW_COLUMNS,
    SERVE,
    Layout,
    Statements,
    Value,
    absence_from,
    row_from,
    signed,
    values_of,
)
from libs.store.window import made_by

CHANGED = "UPDATE standing SET changes = changes + 1"
"""In each transaction in which the store changes something of its own."""

_OLDEST = "SELECT (SELECT seconds FROM tick) - tick FROM outbox ORDER BY id LIMIT 1"


class OutboxBook:
    """Counts of the outbox, kept in memory by its only writer. Used in the writer's thread."""

    def __init__(self, limits: OutboxLimits, table: str) -> None:
        self._limits = limits
        self._table = table
        self._held = HELD_NOTHING
        self._held_until = float("-inf")
        self._known_at: int | None = None
        self._entries = 0
        self._bytes = 0

    @contextmanager
    def job(self, connection: sqlite3.Connection, lost_commits: int) -> Iterator[None]:
        """Around a job that changes the outbox: what the job did not keep is not counted."""
        if self._known_at != lost_commits:
            row = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM outbox").fetchone()
            self._entries, self._bytes = row
            self._known_at = lost_commits
        before = self._entries, self._bytes
        try:
            yield
        except BaseException:
            self._entries, self._bytes = before
            raise

    def add(self, connection: sqlite3.Connection, record: Record, traceparent: str, *, reserve: bool) -> None:
        """The record's event. Raises OutboxFull."""
        event = event_of(record)
        depth = self.depth(connection)
        if reserve:
            near = self._limits.is_near(depth, 1, len(event))
            held = self._count_held(connection) if near else HELD_NOTHING
            fits = self._limits.fits_release(depth, 1, len(event), held)
        else:
            fits = self._limits.fits(depth, len(event))
        if not fits:
            raise OutboxFull
        connection.execute(
            "INSERT INTO outbox (key, term, revision, size, tick, traceparent, event)"
            " SELECT ?, ?, ?, ?, seconds, ?, ? FROM tick",
            (record.row.key, *record.row.version, len(event), traceparent, event),
        )
        connection.execute(CHANGED)
        self._entries += 1
        self._bytes += len(event)

    def _count_held(self, connection: sqlite3.Connection) -> Held:
        """The file without the outbox is at least as large as rows and served requests in it."""
        if time.monotonic() >= self._held_until:
            (rows,) = connection.execute(f"SELECT count(*) FROM {self._table}").fetchone()
            (size,) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
            self._held = Held(rows, max(size - self._bytes, 0))
            self._held_until = time.monotonic() + HELD_SECONDS
        return self._held

    def depth(self, connection: sqlite3.Connection) -> Depth:
        oldest = connection.execute(_OLDEST).fetchone()
        return Depth(self._entries, self._bytes, oldest[0] if oldest else 0.0)

    def removed(self, sizes: Sequence[int]) -> None:
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
        self.book = OutboxBook(limits, layout.table)
        self._fill = fill
        self.changed = asyncio.Event()
        """Set after each commit that may have filled the outbox."""
        self.written = Pulse()
        """Beats after each commit that may have written a record."""

    @property
    def fill(self) -> Fill | None:
        """While old rows are not completed."""
        return None if self._fill is None or self._fill.over else self._fill

    def complete(self, connection: sqlite3.Connection, keys: Sequence[str]) -> None:
        """Old rows of these records become rows of the table; before anything is decided on them."""
        if (fill := self.fill) is not None:
            fill.rows.complete(connection, keys)

    def old_rows(self, connection: sqlite3.Connection, keys: Sequence[str]) -> Mapping[str, Row]:
        """Of these records, for a reader: to be asked for before the table is read (see `libs.store.sqlite_old`)."""
        fill = self.fill
        return {} if fill is None else fill.rows.rows(connection, keys)

    def check_complete(self, action: str) -> None:
        """Raises StillFilling."""
        if (fill := self.fill) is not None:
            fill.check(action)

    def committed(self) -> None:
        """After a commit of a record's write or release."""
        self.changed.set()
        self.written.beat()

    def outbox_job(self, connection: sqlite3.Connection) -> AbstractContextManager[None]:
        return self.book.job(connection, self.database.lost_commits)

    def find(self, connection: sqlite3.Connection, key: str, call: Call | None = None) -> Found:
        """Row, absence and, for a call, its served request: one statement."""
        bucket = bucket_of(key)
        if call is None:
            values = connection.execute(self.statements.read, (key, bucket)).fetchone()
        else:
            parameters = (key, bucket, call.principal, call.request_id)
            values = connection.execute(self.statements.find, parameters).fetchone()
        served = None
        if call is not None and values[ROW_COLUMNS + 4] is not None:
            request_hash, term, revision, answer = values[ROW_COLUMNS + 4 : ROW_COLUMNS + 8]
            served = Served(call.principal, call.request_id, request_hash, Version(term, revision), answer)
        found = found_from(key, values, served)
        if call is None or found.row is None or not values[-1]:
            return found
        return replace(found, row=replace(found.row, lease_seconds=values[-1]))

    def change(self, connection: sqlite3.Connection, found: Found, record: Record, traceparent: str) -> None:
        """Row and event, under the condition that the row is still the one that was found. Raises OutboxFull."""
        self.book.add(connection, record, traceparent, reserve=False)
        values = values_of(record.row, self.layout)
        if found.row is None:
            self._create(connection, values, found)
        else:
            self._fenced(connection, self.statements.update, (*values, self.store.value, *found.row.version), found)

    def hand_over(self, connection: sqlite3.Connection, found: Found, record: Record) -> None:
        """As `change`, for a release: the payload stays, and so does all that is made of it. Raises OutboxFull."""
        self.book.add(connection, record, "", reserve=True)
        row = record.row
        if found.row is None:
            self._create(connection, values_of(row, self.layout), found)
        else:
            values = (row.owner.value, *row.version, signed(row.digest), row.key)
            condition = (self.store.value, *found.row.version)
            self._fenced(connection, self.statements.hand_over, (*values, *condition), found)

    def _create(self, connection: sqlite3.Connection, values: tuple[Value, ...], found: Found) -> None:
        self._fenced(connection, self.statements.create, (*values, self.store.value, found.absence.term), found)

    def _fenced(self, connection: sqlite3.Connection, statement: str, values: tuple[Value, ...], found: Found) -> None:
        """Run a statement whose condition is the fence. Raises NotOwner, StoreNotReady if it changed no row."""
        if connection.execute(statement, values).rowcount == 1:
            return
        now = self.find(connection, found.key)
        if not may_change(now, self.store):
            raise NotOwner.of(now)
        (gone,) = connection.execute("SELECT gone FROM standing").fetchone()
        if gone:
            raise StoreNotReady(gone)
        raise RuntimeError(f"{found.key} changed inside the transaction that had read it: another writer is at work")

    def record(self, row: Row, served: tuple[Served, ...]) -> Record:
        return Record(row, served, made_by(row), self.clock.now())

    def serve(self, connection: sqlite3.Connection, key: str, served: Served) -> None:
        """An entry for the same request, whose effect is not in the row, is replaced."""
        connection.execute(SERVE, _served_values(key, served))

    def learn(self, connection: sqlite3.Connection, key: str, served: Sequence[Served]) -> None:
        """Requests are known from now on. Of two entries for one request, the one with the higher version stays."""
        if served:
            connection.executemany(LEARN, [_served_values(key, one) for one in served])


def with_old(found: Found, old: Mapping[str, Row]) -> Found:
    """What was found in the table, else the old row that had been read before."""
    if found.row is not None or found.key not in old:
        return found
    return replace(found, row=visible(old[found.key], found.absence))


def found_from(key: str, values: Sequence[object], served: Served | None = None) -> Found:
    """From ROW and BUCKET."""
    absence: Absence = absence_from(values[ROW_COLUMNS : ROW_COLUMNS + 4])
    return Found(key, visible(row_from(values[:ROW_COLUMNS]), absence), absence, served)


def _served_values(key: str, served: Served) -> tuple[Value, ...]:
    """Parameters of SERVE and LEARN."""
    return key, served.principal, served.request_id, served.request_hash, *served.version, served.answer


_WINDOW = (
    "SELECT principal, request_id, request_hash, term, revision, answer FROM served"
    " WHERE key = ? AND term = ? AND revision <= ? AND learned >= (SELECT seconds FROM tick) - ?"
    " ORDER BY revision DESC, principal DESC, request_id DESC LIMIT ?"
)


def window(connection: sqlite3.Connection, row: Row) -> tuple[Served, ...]:
    """Requests of the retry window whose effects are in the row, newest last. Other entries for the key do not travel,
    and take no place of those that do."""
    found: list[tuple[str, str, bytes, int, int, bytes | None]] = []
    for version in reversed(contained(row)):
        left = SERVED_WINDOW - len(found)
        if left:
            found += connection.execute(_WINDOW, (row.key, *version, RETRY_WINDOW_SECONDS, left))
    return tuple(
        Served(principal, request_id, request_hash, Version(term, revision), answer)
        for principal, request_id, request_hash, term, revision, answer in reversed(found)
    )

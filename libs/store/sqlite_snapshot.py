"""A copy of a store's SQLite file as it was at one moment, made while the store serves.

SQLite's backup runs inside one read transaction of its own connection: it sees one moment, the store's writer never
waits for it, and writes do not make it start again. The copy lies beside the file, on the same disk, whose free space
is checked before. When the copy is complete, its name is removed: from then on only this process can read it, and the
disk gets the space back, however the process ends. A partial copy of a killed process is removed at the next start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from libs.clock import Clock
from libs.contract.audits import Finding, Kind
from libs.errors import BatonError, DiskFull, StoreUnavailable
from libs.ownership.model import Row
from libs.sqlite import error_of
from libs.store.snapshots import Looked, Progress, SnapshotGone
from libs.store.sqlite_old import OldRows
from libs.store.sqlite_schema import ROW, ROW_COLUMNS, Layout, odd_columns, row_from, signed

log = logging.getLogger(__name__)

IDLE_SECONDS = 900.0
"""A snapshot that was not used for this long is removed."""
RESERVE_BYTES = 64 * 1024 * 1024
"""Space that must be left on the disk for the store itself."""
_STEP_PAGES = 512
_FIRST_LOOK_SECONDS = 1.0
"""How long `take` waits for the end of a copy."""
_STOP_SECONDS = 10.0

KINDS = {
    "duplicate-by-case": Kind("Another live record has the same name, except for upper and lower case or the like"),
    "edited": Kind("The old columns do not match the record: another program has written to the file"),
    "corrupt": Kind("The record does not match its digest, or the file is damaged", acceptable=False),
}
"""Findings of a snapshot, in addition to those of the contract."""


_ALIKE = Finding("duplicate-by-case", "another record's name differs only in upper and lower case or the like")


class _Stopped(Exception):
    """The copy is not needed any more."""


@dataclass(eq=False, slots=True)
class _Copy:
    """One snapshot, complete or in progress. Only its thread uses the connection until the task is done."""

    id: str
    stop: threading.Event = field(default_factory=threading.Event)
    copied_bytes: int = 0
    total_bytes: int = 0
    taken_seconds: float = 0.0
    records: int = 0
    old: OldRows | None = None
    connection: sqlite3.Connection | None = None
    damage: str = ""
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None


class SqliteSnapshots:
    """`libs.store.snapshots.Snapshots` of one file. Used from one event loop; `close` ends it."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        folded: Callable[[str], str],
        clock: Clock,
        free_bytes: Callable[[Path], int] = lambda directory: shutil.disk_usage(directory).free,
        old_rows: Callable[[sqlite3.Connection], OldRows | None] = lambda connection: None,
    ) -> None:
        """`old_rows`: returns the rows of a file that are not completed; None if it has no such rows."""
        self._path = path
        self._target = path.with_name(f"{path.name}.audit")
        self._layout = layout
        self._folded = folded
        self._clock = clock
        self._free_bytes = free_bytes
        self._old_rows = old_rows
        self._lock = asyncio.Lock()
        self._copy: _Copy | None = None
        self._ending: asyncio.Task[None] | None = None
        self._remove()

    def __repr__(self) -> str:
        return f"<Snapshots of {self._path} {self._copy.id if self._copy else 'none'}>"

    async def take(self, snapshot: str) -> Progress:
        async with self._lock:
            copy = self._copy
            if copy is None or copy.id != snapshot:
                await self._end()
                copy = self._copy = _Copy(snapshot)
                copy.task = asyncio.create_task(asyncio.to_thread(self._make, copy))
            assert copy.task is not None
            await asyncio.wait({copy.task}, timeout=_FIRST_LOOK_SECONDS)
            if copy.task.done() and (error := copy.task.exception()) is not None:
                # The next call begins a new copy.
                self._copy = None
                raise error
            self._used(copy)
            return Progress(copy.task.done(), copy.copied_bytes, copy.total_bytes, copy.taken_seconds, copy.records)

    async def page(self, snapshot: str, after: str, limit: int) -> list[Looked]:
        async with self._lock:
            copy = self._copy
            if copy is None or copy.id != snapshot or copy.task is None or not copy.task.done():
                raise SnapshotGone
            assert copy.connection is not None
            self._used(copy)
            # Wait for the thread even if the caller is cancelled: two threads must not use the connection at once.
            reading = asyncio.create_task(asyncio.to_thread(self._page, copy, after, limit))
            try:
                return await asyncio.shield(reading)
            except asyncio.CancelledError:
                await asyncio.wait({reading})
                raise

    async def drop(self, snapshot: str) -> None:
        async with self._lock:
            if self._copy is not None and self._copy.id == snapshot:
                await self._end()

    async def close(self) -> None:
        async with self._lock:
            await self._end()

    def _used(self, copy: _Copy) -> None:
        if copy.expiry is not None:
            copy.expiry.cancel()
        loop = asyncio.get_running_loop()
        copy.expiry = loop.call_later(IDLE_SECONDS, self._expire, copy)

    def _expire(self, copy: _Copy) -> None:
        if self._copy is copy and not self._lock.locked():
            log.warning("snapshot %s is removed: it was not used for %g s", copy.id, IDLE_SECONDS)
            self._ending = asyncio.create_task(self.drop(copy.id))

    async def _end(self) -> None:
        copy, self._copy = self._copy, None
        if copy is None:
            return
        copy.stop.set()
        if copy.expiry is not None:
            copy.expiry.cancel()
        if copy.task is not None:
            await asyncio.wait({copy.task}, timeout=_STOP_SECONDS)
            if copy.task.done() and (error := copy.task.exception()) is not None:
                log.info("snapshot %s was stopped: %s", copy.id, str(error) or "it is not needed any more")
        if copy.connection is not None:
            copy.connection.close()

    def _remove(self) -> None:
        for suffix in ("", "-journal", "-wal", "-shm"):
            self._target.with_name(self._target.name + suffix).unlink(missing_ok=True)

    def _make(self, copy: _Copy) -> None:
        """Make the copy, in a thread."""
        connection: sqlite3.Connection | None = None
        try:
            self._remove()
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)) as source:
                source.execute("BEGIN")
                copy.records = source.execute(f"SELECT count(*) FROM {self._layout.table}").fetchone()[0]
                if (old := self._old_rows(source)) is not None:
                    copy.records += old.count_left(source)
                copy.taken_seconds = self._clock.now()
                self._check_room(source, copy)
                connection = sqlite3.connect(self._target, isolation_level=None, check_same_thread=False)
                self._back_up(source, connection, copy)
            self._prepare(connection, copy)
            copy.connection = connection
        except (sqlite3.Error, _Stopped, BatonError) as error:
            if connection is not None:
                connection.close()
            if (ours := error_of(error, self._path)) is error:
                raise
            raise ours from error
        finally:
            with suppress(OSError):
                self._remove()

    def _check_room(self, source: sqlite3.Connection, copy: _Copy) -> None:
        (pages,), (size,) = (
            source.execute("PRAGMA page_count").fetchone(),
            source.execute("PRAGMA page_size").fetchone(),
        )
        copy.total_bytes = pages * size
        free = self._free_bytes(self._path.parent)
        if free < copy.total_bytes + RESERVE_BYTES:
            raise DiskFull(
                f"the snapshot needs {copy.total_bytes} bytes on the store's disk and must leave {RESERVE_BYTES} bytes"
                f" for the store, but only {free} bytes are free; nothing was written: make room, then try again",
                detail=f"in {self._path.parent}",
            )

    def _back_up(self, source: sqlite3.Connection, target: sqlite3.Connection, copy: _Copy) -> None:
        def progress(status: int, remaining: int, total: int) -> None:
            if copy.stop.is_set():
                raise _Stopped
            copy.copied_bytes = copy.total_bytes - copy.total_bytes * remaining // max(1, total)

        source.backup(target, pages=_STEP_PAGES, progress=progress)

    def _prepare(self, connection: sqlite3.Connection, copy: _Copy) -> None:
        """Leave WAL mode, so that the copy is one file and needs no name; check it; find names that are alike; refuse
        writes."""
        connection.execute("PRAGMA journal_mode = DELETE")
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        copy.damage = "" if result == "ok" else str(result)
        connection.text_factory = lambda data: data.decode(errors="replace")
        connection.create_function("folded", 1, self._folded, deterministic=True)
        copy.old = self._old_rows(connection)
        live = f"SELECT key FROM {self._layout.table} WHERE live"
        if copy.old is not None:
            copy.old.complete_odd(connection)
            live += f" UNION ALL {copy.old.keys}"
        connection.execute("CREATE TEMP TABLE alike (key TEXT PRIMARY KEY) WITHOUT ROWID")
        connection.execute(
            f"WITH named AS ({live}) INSERT INTO alike SELECT key FROM named WHERE folded(key) IN"
            " (SELECT folded(key) FROM named GROUP BY 1 HAVING count(*) > 1)"
        )
        connection.execute("PRAGMA query_only = ON")

    def _page(self, copy: _Copy, after: str, limit: int) -> list[Looked]:
        assert copy.connection is not None
        own = ", ".join(f"r.{name}" for name in self._layout.columns)
        statement = (
            f"SELECT {ROW}, r.digest, r.key IN (SELECT key FROM alike), {own} FROM {self._layout.table} r"
            " WHERE r.key > ? ORDER BY r.key LIMIT ?"
        )
        try:
            found = copy.connection.execute(statement, (after, limit)).fetchall()
            old = [] if copy.old is None else self._look_at_old(copy.old, copy.connection, after, limit)
        except sqlite3.Error as error:
            raise StoreUnavailable("the snapshot cannot be read", detail=f"{self._path}: {error}") from error
        # Damage of the file is reported once, with the first record.
        damage = [Finding("corrupt", f"the file: {copy.damage}")] if copy.damage and not after else []
        looked = [self._look(values) for values in found]
        if old:
            looked = sorted([*looked, *old], key=lambda one: one.key.encode())[:limit]
        if damage and looked:
            looked[0] = Looked(looked[0].key, looked[0].row, (*damage, *looked[0].findings))
        return looked

    def _look_at_old(self, old: OldRows, connection: sqlite3.Connection, after: str, limit: int) -> list[Looked]:
        rows = old.after(connection, after, limit)
        asked = "SELECT n.value FROM json_each(?) n WHERE n.value IN (SELECT key FROM alike)"
        alike = {key for (key,) in connection.execute(asked, (json.dumps([row.key for row in rows]),))}
        return [Looked(row.key, row, (_ALIKE,) if row.key in alike else ()) for row in rows]

    def _look(self, values: tuple[object, ...]) -> Looked:
        envelope, digest, alike, own = (
            values[:ROW_COLUMNS],
            *values[ROW_COLUMNS : ROW_COLUMNS + 2],
            values[ROW_COLUMNS + 2 :],
        )
        key = str(envelope[0])
        try:
            row = row_from(envelope)
        except (LookupError, ValueError, TypeError) as error:
            return Looked(key, None, (Finding("corrupt", f"its envelope cannot be decoded: {error!r}"),))
        assert row is not None, "no outer join"
        if not isinstance(row.payload, bytes):
            return Looked(key, None, (Finding("corrupt", "its payload is not a blob"),))
        return Looked(key, row, tuple(self._findings(row, digest, bool(alike), own)))

    def _findings(self, row: Row, digest: object, alike: bool, own: tuple[object, ...]) -> Iterator[Finding]:
        if alike:
            yield _ALIKE
        if signed(row.digest) != digest:
            yield Finding("corrupt", "its content does not match its digest")
            return
        if odd := odd_columns(self._layout, row, own):  # type: ignore[arg-type]
            yield Finding("edited", f"columns that do not match the record: {', '.join(odd)}")

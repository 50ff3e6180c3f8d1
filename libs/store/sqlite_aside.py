"""Events that a store on SQLite has set aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from libs.ownership.limits import RETRY_WINDOW_SECONDS
from libs.ownership.model import Version
from libs.store.aside import MAX_ASIDE, AsideEntry, Refusal
from libs.store.outbox import ChangeEntry
from libs.store.sqlite_core import Core

ASIDE_TABLES = (
    "CREATE TABLE aside (id INTEGER PRIMARY KEY, key TEXT NOT NULL, term INTEGER NOT NULL, revision INTEGER NOT NULL,"
    " tick REAL NOT NULL, traceparent TEXT NOT NULL, event BLOB NOT NULL, reason TEXT NOT NULL,"
    " UNIQUE (key, term, revision))",
)
_NAMED = "WHERE key = ? AND term = ? AND revision = ?"
_MOVE = (
    "INSERT INTO aside (key, term, revision, tick, traceparent, event, reason)"
    f" SELECT key, term, revision, tick, traceparent, event, ? FROM outbox {_NAMED}"
    f" AND (SELECT count(*) FROM aside) < {MAX_ASIDE}"
)


@dataclass(frozen=True)
class SqliteAside:
    core: Core

    async def set_aside(self, refusals: Sequence[Refusal]) -> list[tuple[str, Version]]:
        return await self.core.database.write(partial(self._set_aside, refusals), background=True)

    def _set_aside(self, refusals: Sequence[Refusal], connection: sqlite3.Connection) -> list[tuple[str, Version]]:
        moved = []
        with self.core.outbox_job(connection):
            for key, version, reason in refusals:
                if connection.execute(_MOVE, (reason, key, *version)).rowcount != 1:
                    continue
                taken = connection.execute(f"DELETE FROM outbox {_NAMED} RETURNING size", (key, *version)).fetchall()
                self.core.book.removed([size for (size,) in taken])
                moved.append((key, version))
        return moved

    async def entries(self, limit: int) -> list[AsideEntry]:
        return await self.core.database.read(partial(_entries, limit))

    async def count(self) -> int:
        return await self.core.database.read(_count)

    async def remove(self, changes: Sequence[tuple[str, Version]]) -> int:
        return await self.core.database.write(partial(_remove, changes), background=True)

    async def prune(self) -> int:
        return await self.core.database.write(self._prune, background=True)

    def _prune(self, connection: sqlite3.Connection) -> int:
        return connection.execute(
            "DELETE FROM aside AS a WHERE a.tick < (SELECT seconds FROM tick) - ?"
            f" AND EXISTS (SELECT 1 FROM {self.core.layout.table} r WHERE r.key = a.key"
            " AND (r.term, r.revision) > (a.term, a.revision))"
            " AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.key = a.key)"
            " AND NOT EXISTS (SELECT 1 FROM aside n WHERE n.key = a.key AND n.id <> a.id)",
            (RETRY_WINDOW_SECONDS,),
        ).rowcount


def _entries(limit: int, connection: sqlite3.Connection) -> list[AsideEntry]:
    found = connection.execute(
        "SELECT key, term, revision, event, traceparent, reason FROM aside ORDER BY id LIMIT ?", (limit,)
    )
    return [
        AsideEntry(ChangeEntry(key, Version(term, revision), event, traceparent), reason)
        for key, term, revision, event, traceparent, reason in found
    ]


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM aside").fetchone()[0])


def _remove(changes: Sequence[tuple[str, Version]], connection: sqlite3.Connection) -> int:
    return sum(connection.execute(f"DELETE FROM aside {_NAMED}", (key, *version)).rowcount for key, version in changes)

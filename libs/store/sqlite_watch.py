"""Watch of the written records of a store on SQLite. Each write has a number; with one writer, numbers grow in the
order of commits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from libs.store.port import MOST_CHANGED, Since, UnknownPosition
from libs.store.sqlite_core import Core


def change_tables(table: str) -> Sequence[str]:
    """Return tables and triggers that record the newest write of each key, whichever statement makes it. A number is
    never used again."""
    written = "(NEW.write_term, NEW.write_revision)"
    note = "BEGIN DELETE FROM change WHERE key = NEW.key; INSERT INTO change (key) VALUES (NEW.key); END"
    return (
        "CREATE TABLE change (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE)",
        # Part of each position, because another database has other numbers.
        "CREATE TABLE change_of (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
        "INSERT INTO change_of VALUES (1, lower(hex(randomblob(8))))",
        f"CREATE TRIGGER {table}_written AFTER UPDATE ON {table}"
        f" WHEN {written} IS NOT (OLD.write_term, OLD.write_revision) {note}",
        f"CREATE TRIGGER {table}_made AFTER INSERT ON {table} WHEN {written} IS NOT (0, 0) {note}",
    )


_POSITION = "SELECT id, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'change'), 0) AS last FROM change_of"
# Keys and position in one statement, so that they are of one moment.
_SINCE = (
    f"SELECT p.id, p.last, c.key FROM ({_POSITION}) p"
    " LEFT JOIN (SELECT key FROM change WHERE number > ? LIMIT ?) c ON true"
)


@dataclass(frozen=True)
class SqliteWatch:
    core: Core

    async def now(self) -> str:
        return await self.core.database.read(_now)

    async def since(self, position: str, wait_seconds: float) -> Since:
        until = asyncio.get_running_loop().time() + wait_seconds
        written = self.core.written
        while True:
            count = written.count
            found = await self.core.database.read(partial(_since, position))
            left = until - asyncio.get_running_loop().time()
            if found.keys or left <= 0 or not await written.after(count, left):
                return found


def _now(connection: sqlite3.Connection) -> str:
    epoch, last = connection.execute(_POSITION).fetchone()
    return f"{epoch}/{last}"


def _since(position: str, connection: sqlite3.Connection) -> Since:
    before, _, text = position.partition("/")
    number = int(text) if text.isdecimal() and len(text) < 19 else -1
    found = connection.execute(_SINCE, (number, MOST_CHANGED + 1)).fetchall()
    epoch, last, first = found[0]
    if before != epoch or not 0 <= number <= last or len(found) > MOST_CHANGED:
        raise UnknownPosition
    keys = () if first is None else tuple(key for _, _, key in found)
    return Since(keys, f"{epoch}/{last}")

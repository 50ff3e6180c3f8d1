"""Calls of clients on a store on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from libs.ownership.model import Call, Found, bucket_of
from libs.ownership.rules import Answered, Changed, Decide
from libs.store.port import Listed, Page
from libs.store.sqlite_core import Core, found_from, with_old
from libs.store.sqlite_old import merged
from libs.store.sqlite_schema import BUCKET, ROW, ROW_COLUMNS, VISIBLE, Value, row_from


@dataclass(frozen=True)
class SqliteRecords:
    core: Core

    async def read(self, key: str) -> Found:
        return await self.core.database.read(partial(self._read, key))

    def _read(self, key: str, connection: sqlite3.Connection) -> Found:
        old = self.core.old_rows(connection, [key])
        return with_old(self.core.find(connection, key), old)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return await self.core.database.read(partial(self._read_many, keys)) if keys else []

    def _read_many(self, keys: Sequence[str], connection: sqlite3.Connection) -> list[Found]:
        old = self.core.old_rows(connection, keys)
        asked = ", ".join("(?, ?)" for _ in keys)
        found = connection.execute(
            f"WITH asked (key, bucket) AS (VALUES {asked}) SELECT {ROW}, {BUCKET}, asked.key FROM asked"
            f" JOIN bucket b ON b.bucket = asked.bucket LEFT JOIN {self.core.layout.table} r ON r.key = asked.key",
            [value for key in keys for value in (key, bucket_of(key))],
        ).fetchall()
        by_key = {values[-1]: found_from(values[-1], values[:-1]) for values in found}
        return [with_old(by_key[key], old) for key in keys]

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        return await self.core.database.write(partial(self._write, call, decide), committed=self.core.committed)

    def _write(self, call: Call, decide: Decide, connection: sqlite3.Connection) -> Changed | Answered:
        with self.core.outbox_job(connection):
            self.core.complete(connection, [call.key])
            found = self.core.find(connection, call.key, call)
            decided = decide(found)
            if isinstance(decided, Changed):
                self.core.serve(connection, call.key, decided.served)
                record = self.core.record(decided.row, (decided.served,))
                self.core.change(connection, found, record, call.traceparent)
            return decided

    async def page(self, page: Page) -> list[Listed]:
        if (fill := self.core.fill) is not None and not page.keys:
            await fill.wait_for_names()
        return await self.core.database.read(partial(self._page, page))

    def _page(self, page: Page, connection: sqlite3.Connection) -> list[Listed]:
        fill = self.core.fill
        old = [] if fill is None else fill.rows.page(connection, page)
        return merged(old, self._new_page(page, connection), page)

    def _new_page(self, page: Page, connection: sqlite3.Connection) -> list[Listed]:
        verdict, parameters = self._verdict(page)
        table = self.core.layout.table
        statement = f"SELECT {ROW}, {verdict} AS verdict FROM {table} r WHERE r.write_revision > 0 AND {VISIBLE}"
        if page.keys:
            statement += f" AND r.key IN ({', '.join('?' for _ in page.keys)}) ORDER BY r.key"
            parameters += page.keys
        else:
            statement += " AND r.key > ? AND verdict ORDER BY r.key LIMIT ?"
            parameters += [page.after, page.limit]
        found = connection.execute(statement, parameters)
        rows = ((row_from(values[:ROW_COLUMNS]), bool(values[-1])) for values in found)
        return [Listed(row, matches) for row, matches in rows if row is not None]

    def _verdict(self, page: Page) -> tuple[str, list[Value]]:
        """The filter as an expression over a row, and its parameters."""
        layout, wanted = self.core.layout, page.filter
        terms = ["(r.live OR length(r.payload) > 0)"] if wanted.show_deleted else ["r.live"]
        parameters: list[Value] = []
        for name, value in wanted.equals:
            terms.append(f"r.{layout.filters[name]} = ?")
            parameters.append(value)
        for name, value in wanted.labels:
            terms.append(f"EXISTS (SELECT 1 FROM json_each(r.{layout.labels}) l WHERE l.key = ? AND l.value = ?)")
            parameters += [name, value]
        return " AND ".join(terms) or "true", parameters

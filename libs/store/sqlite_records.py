"""Calls of clients on a store on SQLite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from libs.contract.pages import ACCOUNT, Page
from libs.ownership.model import Answered, Call, Changed, Decide, Found, bucket_of
from libs.store import engine
from libs.store.limits import LIST_ROWS, LIST_SECONDS, LIST_STEP_ROWS, Work
from libs.store.port import Listed
from libs.store.sqlite_core import Core, found_from, with_old
from libs.store.sqlite_old import merged
from libs.store.sqlite_schema import BUCKET, ROW, ROW_COLUMNS, VISIBLE, Value, list_index, row_from
from libs.store.sqlite_transaction import SqliteTransactions
from libs.store.window import joined, up_to_other

_CREATED = f"r.write_revision > 0 AND {VISIBLE}"
_INDEXES = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?"


@dataclass(frozen=True)
class SqliteRecords:
    """`libs.store.port.Records`."""

    core: Core
    transactions: SqliteTransactions

    async def read(self, key: str) -> Found:
        database = self.core.database
        if self.core.fill is None:
            return await database.read_point(partial(self.core.find, key=key))
        return await database.read(partial(self._read, key))

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
        return await self.transactions.run(partial(engine.write, call=call, decide=decide))

    async def page(self, page: Page) -> list[Listed]:
        if page.filter.accounts is not None and not page.keys and not page.filter.by_account():
            return []
        if (fill := self.core.fill) is not None and not page.keys:
            await fill.wait_for_names()
        return await self.core.database.read(partial(self._page, page))

    def _page(self, page: Page, connection: sqlite3.Connection) -> list[Listed]:
        while True:
            fill = self.core.fill
            old = [] if fill is None else fill.rows.page(connection, page)
            listed = merged(old, self._new_page(page, connection), page)
            if listed is not None:
                return listed

    def _new_page(self, page: Page, connection: sqlite3.Connection) -> list[Listed]:
        if page.keys:
            verdict, parameters = self._verdict(page)
            created = f"SELECT {ROW}, {verdict} AS verdict FROM {self.core.layout.table} r WHERE {_CREATED}"
            statement = f"{created} AND r.key IN ({', '.join('?' for _ in page.keys)}) ORDER BY r.key"
            return _listed(connection.execute(statement, (*parameters, *page.keys)))
        if page.filter.accounts is None:
            return self._bounded(page, connection, Work(LIST_ROWS, LIST_STEP_ROWS, LIST_SECONDS))
        filters = page.filter.by_account()
        work = Work(LIST_ROWS, LIST_STEP_ROWS, LIST_SECONDS).share(len(filters))
        parts = [self._bounded(replace(page, filter=wanted), connection, work) for wanted in filters]
        return joined(parts, page.limit)

    def _bounded(self, page: Page, connection: sqlite3.Connection, work: Work) -> list[Listed]:
        verdict, parameters = self._verdict(page)
        created = f"SELECT {ROW}, {verdict} AS verdict FROM {self.core.layout.table} r WHERE {_CREATED}"
        table = self.core.layout.table
        scope, of_scope = self._scope(page, connection)
        step = f"SELECT r.key FROM {table} r WHERE {scope} AND r.key > ? ORDER BY r.key LIMIT 1 OFFSET ?"
        listed: list[Listed] = []
        after = page.after
        until = time.monotonic() + work.seconds
        for _ in range(work.rows // work.step_rows):
            end = connection.execute(step, (*of_scope, after, work.step_rows - 1)).fetchone()
            last = "" if end is None else " AND r.key <= ?"
            statement = f"{created} AND {scope} AND r.key > ?{last} AND verdict ORDER BY r.key LIMIT ?"
            bounds = (*of_scope, after, *(end or ()), page.limit - len(listed))
            listed += _listed(connection.execute(statement, (*parameters, *bounds)))
            if end is None or len(listed) == page.limit:
                return listed
            (after,) = end
            if time.monotonic() > until:
                break
        rest = f"SELECT {ROW}, {_CREATED} AND {verdict} FROM {table} r WHERE {scope} AND r.key > ? ORDER BY r.key"
        with closing(connection.execute(rest, (*parameters, *of_scope, after))) as rows:
            return up_to_other(listed, map(_listed_of, rows), page.limit)

    def _scope(self, page: Page, connection: sqlite3.Connection) -> tuple[str, tuple[Value, ...]]:
        """Return a condition whose rows an index has in the order of their keys, and its parameters."""
        layout = self.core.layout
        if page.filter.accounts:
            # Also if the index does not exist: a page of one account must not end at the row of another one.
            return f"r.{layout.filters[ACCOUNT]} = ?", page.filter.accounts
        names = {name for (name,) in connection.execute(_INDEXES, (layout.table,))}
        for name, value in sorted(page.filter.equals):
            if list_index(layout.table, layout.filters[name]) in names:
                return f"r.{layout.filters[name]} = ?", (value,)
        return "true", ()

    def _verdict(self, page: Page) -> tuple[str, list[Value]]:
        """Return the filter as an expression over a row, and its parameters. It is written so that SQLite uses no index
        for it: `_scope` alone selects the rows that are examined."""
        layout, wanted = self.core.layout, page.filter
        terms = ["(r.live OR length(r.payload) > 0)"] if wanted.show_deleted else ["r.live"]
        parameters: list[Value] = []
        for name, value in wanted.equals:
            terms.append(f"+r.{layout.filters[name]} = ?")
            parameters.append(value)
        if wanted.accounts is not None:
            terms.append(f"+r.{layout.filters[ACCOUNT]} IN ({', '.join('?' for _ in wanted.accounts)})")
            parameters += wanted.accounts
        for name, value in wanted.labels:
            terms.append(f"EXISTS (SELECT 1 FROM json_each(r.{layout.labels}) l WHERE l.key = ? AND l.value = ?)")
            parameters += [name, value]
        return " AND ".join(terms) or "true", parameters


def _listed_of(values: Sequence[Any]) -> Listed:
    """Decode ROW and a verdict."""
    row = row_from(values[:ROW_COLUMNS])
    assert row is not None, "no outer join"
    return Listed(row, bool(values[-1]))


def _listed(found: Iterable[Sequence[Any]]) -> list[Listed]:
    return [_listed_of(values) for values in found]

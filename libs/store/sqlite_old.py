"""Rows of a table that existed before the store. Each becomes a record when it is first changed, copied or released.

At the first start the old table is renamed and a new, empty one takes its name, so the duration of a start never
depends on the number of rows, and every index and trigger is made on an empty table. From then on a record is in
exactly one of the two tables. A row of the old table is a record of version (0, 1) that the old store owns. To complete
a row is to insert it into the new table and delete it from the old one, in one transaction of the writer.

A reader reads the old table first and the new one after that. A row that is completed in between is found twice, never
missed, and the newer copy counts.

Rows are completed in the order of their ids, which is the order of the keys. A row is odd if its id cannot be part of a
key. Its key is made from the row's number and has another position in that order, so odd rows are completed first
(`find_odd`). Until then no list and no copy of all records is answered.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from libs.contract.pages import ACCOUNT, Filter, Page
from libs.errors import BatonError
from libs.ownership.model import Row, bucket_of
from libs.store.columns import ColumnsOf, matches
from libs.store.limits import LIST_ROWS as PAGE_ROWS
from libs.store.port import Listed
from libs.store.sqlite_schema import PROTOCOL_COLUMNS, Layout, Value, protocol_values
from libs.store.window import up_to_other

_SHORT = 64
"""An id of up to this many characters is never too long."""
SCAN_ROWS = 20_000
"""Ids that one statement examines."""
STEP_ROWS = 100
"""Rows of one transaction. A client's write may wait for one such transaction."""
_NO_LEASE = ""
ACCOUNT_ROWS = 200_000
"""Rows that a page of some accounts examines. SQLite compares their accounts, about 0.2 s."""
LIST_ROWS = 200
"""Rows that a list converts at once."""

FILLING_TABLES = (
    # `total` is NULL until all rows are counted. `moving` is 1 only inside a transaction that completes rows.
    "CREATE TABLE filling (one INTEGER PRIMARY KEY CHECK (one = 1), done INTEGER NOT NULL, total INTEGER,"
    " moving INTEGER NOT NULL)",
    "INSERT INTO filling VALUES (1, 0, NULL, 0)",
)


def old_guards(table: str) -> Sequence[str]:
    """Return triggers that let only the completion of rows change the old table."""
    return (
        f"CREATE TRIGGER {table}_insert BEFORE INSERT ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{table}: rows are only taken out of it'); END",
        f"CREATE TRIGGER {table}_update BEFORE UPDATE ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{table}: rows are only taken out of it'); END",
        f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} WHEN (SELECT moving FROM filling) = 0"
        f" BEGIN SELECT RAISE(ABORT, '{table}: rows are only deleted when they become records'); END",
    )


class StillFilling(BatonError):
    """This call needs all rows of the old program, whose completion continues by itself: try again later."""

    code = "FAILED_PRECONDITION"
    reason = "STILL_FILLING"
    retry_seconds = 5.0


@dataclass(frozen=True, slots=True)
class OldTable:
    """The old table, and how its rows become records."""

    name: str
    id: str
    """Column of the id. It has a unique index in bytewise order."""
    columns: tuple[str, ...]
    """Columns that a record is made of, including `id`. The new table has all of them too."""
    prefix: str
    """Start of the keys of all records with a clean id. The id is the rest of the key."""
    is_clean: Callable[[object], bool]
    """Whether an id can be the rest of a key."""
    key: Callable[[object, int, Callable[[str], bool]], str]
    """Makes the key of a row from its id, its number, and a test whether an id exists."""
    made: re.Pattern[str]
    """Matches the rest of a key that was made for a row without a clean id. Group 1 is the row's number."""
    row: Callable[[str, Mapping[str, object]], tuple[Row, tuple[Value, ...]]]
    """Makes the record, and the values of the layout's own columns, from key and columns. The record has no lease."""
    columns_of: ColumnsOf
    odd: Mapping[str, str]
    """Condition that is true for all rows whose record may have another value in a filter's column, by column."""


class Progress(NamedTuple):
    done: int
    total: int
    """An estimate until all rows are counted."""
    counted: bool

    def __str__(self) -> str:
        share = f"{100 * self.done / self.total:.0f} %" if self.counted and self.total else "not counted yet"
        return f"{self.done} of {'' if self.counted else 'about '}{self.total} old rows completed ({share})"

    @property
    def left(self) -> int:
        return max(self.total - self.done, 0)


class OldRows:
    """Statements on the old table. Methods that complete rows run in a job of the writer."""

    def __init__(self, layout: Layout, old: OldTable, extra: Sequence[str] = ()) -> None:
        """`extra`: columns of both tables that are not part of a record and are copied unchanged."""
        self._layout, self._old, self._table = layout, old, layout.table
        columns = ", ".join(f'o."{name}"' for name in old.columns)
        self._id = old.columns.index(old.id)
        self.keys = f"SELECT '{old.prefix}' || {old.id} AS key FROM {old.name}"
        """A SELECT of all keys. Correct only when no odd row is left."""
        self._select = f"SELECT o.rowid, {columns} FROM {old.name} o"
        kept = "".join(f', "{name}"' for name in extra)
        names = ", ".join((*PROTOCOL_COLUMNS, *layout.columns, "lease"))
        count = len(PROTOCOL_COLUMNS) + len(layout.columns) + 1
        marks = ", ".join(f"?{number}" for number in range(1, count + 1))
        self._insert = (
            f"INSERT INTO {self._table} ({names}{kept}) SELECT {marks}{kept} FROM {old.name} WHERE rowid = ?{count + 1}"
        )

    # Reading, on any connection.

    def progress(self, connection: sqlite3.Connection) -> Progress:
        done, total, highest = connection.execute(
            f"SELECT done, total, iif(total IS NULL, (SELECT max(rowid) FROM {self._old.name}), 0) FROM filling"
        ).fetchone()
        return Progress(done, done + (highest or 0) if total is None else total, total is not None)

    def count(self, connection: sqlite3.Connection) -> int:
        """Return how many rows the old table had in the beginning. One statement, so that a row does not count as left
        and as done."""
        statement = f"SELECT (SELECT done FROM filling) + (SELECT count(*) FROM {self._old.name})"
        return int(connection.execute(statement).fetchone()[0])

    def count_left(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {self._old.name}").fetchone()[0])

    def count_of(self, connection: sqlite3.Connection, account: str, most: int) -> int:
        """Return how many rows are left of an account, up to `most`. All records of the old program are live."""
        of_account = f"SELECT 1 FROM {self._old.name} o WHERE o.{self._layout.filters[ACCOUNT]} = ? LIMIT ?"
        return int(connection.execute(f"SELECT count(*) FROM ({of_account})", (account, most)).fetchone()[0])

    def has_at_most(self, connection: sqlite3.Connection, rows: int) -> bool:
        return connection.execute(f"SELECT 1 FROM {self._old.name} LIMIT 1 OFFSET {rows}").fetchone() is None

    def rows(self, connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Row]:
        """Return the records of these keys whose rows are not completed."""
        with _lenient(connection):
            found = [(key, self._locate(connection, key)) for key in keys]
        return {key: self._row(key, values) for key, values in found if values is not None}

    def page(self, connection: sqlite3.Connection, page: Page) -> list[Listed]:
        """Return the rows of a page, by key."""
        hidden = {bucket for (bucket,) in connection.execute("SELECT bucket FROM bucket WHERE term > 0")}
        if page.keys:
            rows = [row for row in self.rows(connection, page.keys).values() if bucket_of(row.key) not in hidden]
            return [Listed(row, matches(row, self._old.columns_of(row), page.filter)) for row in rows]
        found: list[Listed] = []
        condition, parameters = self._may_match(page.filter)
        last = self._step_end(connection, page.after, PAGE_ROWS if page.filter.accounts is None else ACCOUNT_ROWS)
        if last is not None:
            condition, parameters = f"({condition}) AND o.{self._old.id} <= ?", [*parameters, last[1 + self._id]]
        for key, values in self._after(connection, page.after, condition, parameters):
            row = self._row(key, values)
            if matches(row, self._old.columns_of(row), page.filter) and bucket_of(key) not in hidden:
                found.append(Listed(row, True))
                if len(found) == page.limit:
                    return found
        if last is not None and page.filter.accounts is not None:
            # Without an index of accounts, the page would end at a row of another account.
            raise StillFilling("the records of the old program are being completed: try again in a while")
        if last is not None:
            after = f"{self._old.prefix}{last[1 + self._id]}"
            rest = (self._row(key, values) for key, values in self._after(connection, after, "true", ()))
            shown = (
                (row, matches(row, self._old.columns_of(row), page.filter) and bucket_of(row.key) not in hidden)
                for row in rest
            )
            return up_to_other(found, (Listed(row, is_shown) for row, is_shown in shown), page.limit)
        return found

    def _step_end(self, connection: sqlite3.Connection, after: str, rows: int) -> Sequence[Any] | None:
        """Return the last of the `rows` rows that a page examines; None if there are fewer."""
        beyond, column = self._id_before(after), self._old.id
        if beyond is None:
            return None
        statement = f"{self._select} WHERE o.{column} > ? AND o.{column} < x'' ORDER BY o.{column} LIMIT 1 OFFSET ?"
        with _lenient(connection):
            found: Sequence[Any] | None = connection.execute(statement, (beyond, rows - 1)).fetchone()
        return found if found is not None and self._old.is_clean(found[1 + self._id]) else None

    def after(self, connection: sqlite3.Connection, after: str, limit: int) -> list[Row]:
        """Return the first records after a key."""
        found: list[Row] = []
        for key, values in self._after(connection, after, "true", ()):
            if len(found) == limit:
                break
            found.append(self._row(key, values))
        return found

    def find_odd(self, connection: sqlite3.Connection, after: bytes | None) -> tuple[bytes | None, list[int]]:
        """Find the odd rows among the next SCAN_ROWS ids after this one. Return the id to continue from, None at the
        end, and the numbers of the odd rows. The first call (`after` is None) finds the rows whose ids are not
        texts."""
        before, connection.text_factory = connection.text_factory, bytes
        try:
            return self._find_no_texts(connection) if after is None else self._find_odd_texts(connection, after)
        finally:
            connection.text_factory = before

    def _find_no_texts(self, connection: sqlite3.Connection) -> tuple[bytes | None, list[int]]:
        """The id to continue from is None as long as there are such rows: complete them, then call again."""
        # SQLite orders NULL before numbers, numbers before texts, and texts before blobs.
        of = f"SELECT rowid FROM {self._old.name} WHERE {self._old.id}"
        found = connection.execute(f"{of} IS NULL UNION ALL {of} <= '' UNION ALL {of} >= x'' LIMIT {SCAN_ROWS}")
        numbers = [number for (number,) in found]
        return (None if numbers else b""), numbers

    def _find_odd_texts(self, connection: sqlite3.Connection, after: bytes) -> tuple[bytes | None, list[int]]:
        # SQLite compares without the interpreter's lock. So it selects the ids that are long or not plain ASCII, and
        # only these are examined here.
        name, column = self._old.name, self._old.id
        texts = f"FROM {name} WHERE {column} > CAST(? AS TEXT) AND {column}"
        last = connection.execute(
            f"SELECT {column} {texts} < x'' ORDER BY {column} LIMIT 1 OFFSET {SCAN_ROWS}", (after,)
        ).fetchone()
        # One upper bound: SQLite uses only one for the search in its index.
        until = "< x''" if last is None else "<= CAST(? AS TEXT)"
        odd = (
            f"(length(CAST({column} AS BLOB)) <> length({column}) OR length({column}) > {_SHORT}"
            f" OR {column} GLOB '*[^!-~]*')"
        )
        found = connection.execute(f"SELECT rowid, {column} {texts} {until} AND {odd}", (after, *(last or ())))
        numbers = [number for number, text in found if not self._old.is_clean(text.decode(errors="replace"))]
        return (None if last is None else last[0]), numbers

    def _after(
        self, connection: sqlite3.Connection, after: str, condition: str, parameters: Sequence[Any]
    ) -> Iterator[tuple[str, Sequence[Any]]]:
        """Yield rows with clean ids, by key, in small steps. The statement of a step ends before its rows are used."""
        beyond, column = self._id_before(after), self._old.id
        statement = f"{self._select} WHERE o.{column} > ? AND o.{column} < x'' AND ({condition}) ORDER BY o.{column}"
        while beyond is not None:
            with _lenient(connection):
                found = connection.execute(f"{statement} LIMIT {LIST_ROWS}", (beyond, *parameters)).fetchall()
            for values in found:
                beyond = values[1 + self._id]
                if self._old.is_clean(beyond):
                    yield f"{self._old.prefix}{beyond}", values
            if len(found) < LIST_ROWS:
                return

    def _id_before(self, after: str) -> str | None:
        """Return the id after which the rows with keys after this one begin; None if there are no such rows."""
        prefix = self._old.prefix
        if after.startswith(prefix):
            return after.removeprefix(prefix)
        return "" if after.encode() < prefix.encode() else None

    def _may_match(self, wanted: Filter) -> tuple[str, list[Any]]:
        """Return a condition that is true for every row whose record matches, and its parameters."""
        terms: list[str] = []
        parameters: list[Any] = []
        for name, value in wanted.equals:
            column = self._layout.filters[name]
            if "\ufffd" not in value:
                terms.append(f"(o.{column} = ? OR {self._old.odd[name]})")
                parameters.append(value)
        if wanted.accounts is not None and not any("\ufffd" in account for account in wanted.accounts):
            accounts = ", ".join("?" for _ in wanted.accounts)
            terms.append(f"(o.{self._layout.filters[ACCOUNT]} IN ({accounts}) OR {self._old.odd[ACCOUNT]})")
            parameters += wanted.accounts
        return " AND ".join(terms) or "true", parameters

    def _locate(self, connection: sqlite3.Connection, key: str) -> Sequence[Any] | None:
        """Return the row of a record, with the columns of `_select`."""
        old = self._old
        if not key.startswith(old.prefix):
            return None
        rest = key.removeprefix(old.prefix)
        if old.is_clean(rest):
            found = connection.execute(f"{self._select} WHERE o.{old.id} = ?", (rest,)).fetchone()
            if found is not None:
                return tuple(found)
        if made := old.made.fullmatch(rest):
            found = connection.execute(f"{self._select} WHERE o.rowid = ?", (int(made[1]),)).fetchone()
            if found is not None and self._key(connection, found) == key:
                return tuple(found)
        return None

    def _key(self, connection: sqlite3.Connection, values: Sequence[Any]) -> str:
        return self._old.key(values[1 + self._id], values[0], lambda text: self._is_id(connection, text))

    def _is_id(self, connection: sqlite3.Connection, text: str) -> bool:
        column = self._old.id
        of_old = f"SELECT 1 FROM {self._old.name} WHERE {column} = ?"
        of_new = f"SELECT 1 FROM {self._table} WHERE key = ?"
        found = connection.execute(f"{of_old} UNION ALL {of_new} LIMIT 1", (text, self._old.prefix + text))
        return found.fetchone() is not None

    def _row(self, key: str, values: Sequence[Any]) -> Row:
        row, _ = self._old.row(key, self._flat(values))
        return row

    def _flat(self, values: Sequence[Any]) -> Mapping[str, object]:
        return dict(zip(self._old.columns, values[1:], strict=True))

    # Completing, in a job of the writer.

    def keep_total(self, connection: sqlite3.Connection, total: int) -> Progress:
        connection.execute("UPDATE filling SET total = ? WHERE total IS NULL", (total,))
        return self.progress(connection)

    def fence(self, connection: sqlite3.Connection, reason: str) -> None:
        connection.execute("UPDATE standing SET gone = ? WHERE gone = ''", (reason,))

    def complete(self, connection: sqlite3.Connection, keys: Sequence[str]) -> None:
        """Complete the rows of these records that are not completed yet."""
        with _lenient(connection):
            found = [values for key in dict.fromkeys(keys) if (values := self._locate(connection, key)) is not None]
            self._complete(connection, found)

    def complete_numbers(self, connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
        with _lenient(connection):
            for start in range(0, len(numbers), STEP_ROWS):
                some = tuple(numbers[start : start + STEP_ROWS])
                marks = ", ".join("?" for _ in some)
                self._complete(
                    connection, connection.execute(f"{self._select} WHERE o.rowid IN ({marks})", some).fetchall()
                )

    def complete_odd(self, connection: sqlite3.Connection) -> None:
        """Complete all odd rows without a break. Only for a connection that the store's writer does not use."""
        looked_to: bytes | None = None
        while True:
            end, odd = self.find_odd(connection, looked_to)
            self.complete_numbers(connection, odd)
            if end is None and looked_to is not None:
                return
            looked_to = end

    def complete_after(self, connection: sqlite3.Connection, after: str, limit: int) -> str:
        """Complete the first rows after a key, when no odd row is left. Return the last one's key; "" if there are no
        more rows."""
        beyond = self._id_before(after)
        if beyond is None:
            return ""
        column = self._old.id
        statement = f"{self._select} WHERE o.{column} > ? ORDER BY o.{column} LIMIT ?"
        with _lenient(connection):
            found = connection.execute(statement, (beyond, limit)).fetchall()
            self._complete(connection, found)
        return self._old.prefix + found[-1][1 + self._id] if len(found) == limit else ""

    def complete_some(self, connection: sqlite3.Connection, limit: int) -> int:
        """Complete the next rows, odd or not. Return how many."""
        with _lenient(connection):
            found = connection.execute(f"{self._select} ORDER BY o.{self._old.id} LIMIT ?", (limit,)).fetchall()
            self._complete(connection, found)
        return len(found)

    def _complete(self, connection: sqlite3.Connection, found: Sequence[Sequence[Any]]) -> None:
        if not found:
            return
        rows = [self._old.row(self._key(connection, values), self._flat(values)) for values in found]
        numbers = [values[0] for values in found]
        connection.execute("UPDATE filling SET moving = 1, done = done + ?", (len(rows),))
        connection.executemany(
            self._insert,
            [
                (*protocol_values(row), *own, _NO_LEASE, number)
                for (row, own), number in zip(rows, numbers, strict=True)
            ],
        )
        connection.executemany(f"DELETE FROM {self._old.name} WHERE rowid = ?", [(number,) for number in numbers])
        # A completion is not a write, so watches must not report it.
        connection.executemany("DELETE FROM change WHERE key = ?", [(row.key,) for row, _ in rows])
        connection.execute("UPDATE filling SET moving = 0")


def merged(old: Sequence[Listed], new: Sequence[Listed], page: Page) -> list[Listed] | None:
    """Merge a page of the old table and one of the new table. A row in both was completed between the two statements,
    and the newer copy counts.

    Return None if a row that ended a page because it did not match does match by now: the caller reads both tables
    again.
    """
    if not old:
        return list(new)
    by_key = {one.row.key: one for one in (*old, *new)}
    listed = sorted(by_key.values(), key=lambda one: one.row.key.encode())
    if page.keys:
        return listed
    ends = [one.row.key for side in (old, new) for one in side[-1:] if not one.matches]
    if not ends:
        return listed[: page.limit]
    # One of the pages did not examine any row after its last one.
    end = min(ends, key=str.encode)
    if by_key[end].matches:
        return None
    return [one for one in listed if one.row.key.encode() <= end.encode()][: page.limit]


@contextmanager
def _lenient(connection: sqlite3.Connection) -> Iterator[None]:
    """Let the block read text that is not UTF-8, with U+FFFD in place of invalid bytes."""
    before = connection.text_factory
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        yield
    finally:
        connection.text_factory = before

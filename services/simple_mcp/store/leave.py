"""`simple_mcp leave`: gives the file back to the old program in its old form.

It is possible only while store B owns no record and no bucket: before the first of them moves to B, and again after all
have moved back. One transaction restores the old table and its indexes, with a row for each live record, and drops all
objects of this store. Before it commits, it runs statements like the old program's and undoes them, so that an
incomplete file is noticed now and not by the old program later.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from libs.errors import BatonError
from libs.ownership.model import Store
from libs.sandboxes.audit import RAW
from libs.sandboxes.schema import SCHEMAS
from libs.sqlite import Migration, connect, error_of, exclusive, migrate, transaction
from libs.store.sqlite_schema import ROW, row_from
from services.simple_mcp.store.flat import COLUMNS, FIRST, OLD, OLD_TABLE
from services.simple_mcp.store.takeover import is_taken_over, old_rows

TABLE = "sandboxes"
_LEFT = "sandboxes_left"
_TRIAL = "trial of the old program's statements"
_EXISTS = "SELECT 1 FROM sqlite_master WHERE type = ? AND name = ?"
_RAW_COLUMNS = tuple(name for name in COLUMNS if name != "id")


class CannotLeave(BatonError):
    """The file cannot be given back to the old program now. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "CANNOT_LEAVE"


class Left(NamedTuple):
    records: int
    deleted: int
    """Tombstones, which the old program's table does not have."""


def obstacle(connection: sqlite3.Connection) -> str:
    """Return why the file cannot be given back now, with a remedy, or "" if it can."""
    (fence_reason,) = connection.execute("SELECT gone FROM standing").fetchone()
    if fence_reason:
        return f"this store is fenced ({fence_reason}): run `baton recover` first"
    me = Store.A.value
    (records,) = connection.execute(f"SELECT count(*) FROM {TABLE} WHERE owner <> ?", (me,)).fetchone()
    (buckets,) = connection.execute("SELECT count(*) FROM bucket WHERE owner <> ?", (me,)).fetchone()
    if records or buckets:
        return f"{records} records and {buckets} buckets are not owned here: run `baton rollback` first"
    (conflicts,) = connection.execute("SELECT count(*) FROM conflict WHERE resolution = ''").fetchone()
    if conflicts:
        return f"{conflicts} conflicts are not resolved and would be lost: see `baton conflicts`"
    return ""


def status(path: Path) -> list[str]:
    """Return lines for people. It works while the store serves. Raises CannotLeave."""
    if not path.exists():
        raise CannotLeave(f"{path} does not exist")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
            if not is_taken_over(connection):
                return ["the file is the old program's: the first start takes it over"]
            why = obstacle(connection)
            leaving = (
                f"`simple_mcp leave` is not possible: {why}"
                if why
                else "`simple_mcp leave` is possible until the first record or bucket moves to service_layer"
            )
            rows = old_rows(connection)
            done = "all old rows are completed"
            return [done if rows is None else str(rows.progress(connection)), leaving]
    except sqlite3.Error as error:
        raise error_of(error, path) from error


def leave(path: Path, migrations: Sequence[Migration]) -> Left:
    """Give the file back. Raises CannotLeave, AlreadyOpen, NewerSchema, StoreUnavailable, DiskFull."""
    if not path.exists():
        raise CannotLeave(f"{path} does not exist")
    with exclusive(path):
        try:
            with closing(connect(path, busy_seconds=5.0)) as connection:
                if not is_taken_over(connection):
                    raise CannotLeave(f"{path} is the old program's: it was never taken over, or was given back")
                migrate(connection, migrations, path)
                with transaction(connection):
                    if why := obstacle(connection):
                        raise CannotLeave(f"{CannotLeave.__doc__} {why}")
                    left = _give_back(connection, migrations, path)
                    _try_out(connection)
                # Without the WAL the database is a single file again.
                connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise error_of(error, path) from error
    return left


def _give_back(connection: sqlite3.Connection, migrations: Sequence[Migration], path: Path) -> Left:
    with _new_file(migrations, path) as scratch:
        tables = _tables_of_ours(scratch)
        table, *indexes, version = _old_schema(connection, scratch)
    for (trigger,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN (?, ?)", (TABLE, OLD.name)
    ).fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')
    connection.execute("PRAGMA legacy_alter_table = ON")
    connection.execute(f"ALTER TABLE {TABLE} RENAME TO {_LEFT}")
    if connection.execute(_EXISTS, ("table", OLD.name)).fetchone():
        # Rows that were not completed are unchanged since the old program wrote them.
        connection.execute(f"ALTER TABLE {OLD.name} RENAME TO {TABLE}")
    else:
        connection.execute(table)
    connection.execute("PRAGMA legacy_alter_table = OFF")
    left = _copy_back(connection)
    for name in (_LEFT, *tables):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    _make_indexes(connection, table, indexes)
    connection.execute(version)
    return left


def _copy_back(connection: sqlite3.Connection) -> Left:
    columns = ", ".join(
        f'"{name}"'
        for (name,) in connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE NOT hidden", (TABLE,))
    )
    is_record = "live AND write_revision > 0"
    connection.execute(f"INSERT INTO {TABLE} ({columns}) SELECT {columns} FROM {_LEFT} WHERE {is_record}")
    for key, values in _raw_values(connection):
        names = ", ".join(f"{name} = ?" for name in values)
        parameters = (*values.values(), key.removeprefix(OLD.prefix))
        connection.execute(f"UPDATE {TABLE} SET {names} WHERE id = ?", parameters)
    (deleted,) = connection.execute(f"SELECT count(*) FROM {_LEFT} WHERE NOT live AND write_revision > 0").fetchone()
    (records,) = connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
    return Left(records, deleted)


def _raw_values(connection: sqlite3.Connection) -> Iterator[tuple[str, dict[str, str]]]:
    """The old program's unreadable values, from records that were not written since."""
    rows = connection.execute(
        f"SELECT {ROW} FROM {_LEFT} r WHERE (r.write_term, r.write_revision) = (?, ?)"
        " AND instr(r.payload, CAST(? AS BLOB)) > 0",
        (*FIRST, RAW),
    ).fetchall()
    for values in rows:
        row = row_from(values)
        assert row is not None, "no outer join"
        annotations = SCHEMAS.model_of(row).annotations
        if found := {name: annotations[RAW + name] for name in _RAW_COLUMNS if RAW + name in annotations}:
            yield row.key, found


@contextmanager
def _new_file(migrations: Sequence[Migration], path: Path) -> Iterator[sqlite3.Connection]:
    """A new database of this store in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
        scratch.execute(OLD_TABLE)
        migrate(scratch, migrations, path)
        yield scratch


def _tables_of_ours(scratch: sqlite3.Connection) -> list[str]:
    found = scratch.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN (?, ?) AND name NOT LIKE 'sqlite%'",
        (TABLE, OLD.name),
    )
    return [name for (name,) in found]


def _old_schema(connection: sqlite3.Connection, scratch: sqlite3.Connection) -> list[str]:
    """Statements that create the old table and its indexes and set its schema's number."""
    if connection.execute(_EXISTS, ("table", "old_schema")).fetchone():
        return [sql for (sql,) in connection.execute("SELECT sql FROM old_schema ORDER BY number")]
    # An earlier release did not keep the statements: remove this store's columns from the present table.
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
    columns = {name for (name,) in scratch.execute("SELECT name FROM pragma_table_info(?)", (TABLE,))}
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as trial:
        trial.execute(sql)
        for name in columns - set(COLUMNS):
            trial.execute(f"ALTER TABLE {TABLE} DROP COLUMN {name}")
        (sql,) = trial.execute("SELECT sql FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
    return [sql, "PRAGMA user_version = 0"]


def _make_indexes(connection: sqlite3.Connection, table: str, indexes: Sequence[str]) -> None:
    """Create the indexes that did not stay with the table."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as trial:
        trial.execute(table)
        for sql in indexes:
            trial.execute(sql)
        found = trial.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        made = dict(found.fetchall())
    for name, sql in made.items():
        if connection.execute(_EXISTS, ("index", name)).fetchone() is None:
            connection.execute(sql)


def _try_out(connection: sqlite3.Connection) -> None:
    """Run statements like the old program's and undo them. Raises CannotLeave, sqlite3.Error."""
    row = (_TRIAL, "", "RUNNING", "", "[]", "{}", 1.0, 1, 1, json.dumps({}), 1.0, 1.0)
    connection.execute("SAVEPOINT trial")
    names, marks = ", ".join(COLUMNS), ", ".join("?" for _ in COLUMNS)
    connection.execute(f"INSERT INTO {TABLE} ({names}) VALUES ({marks})", row)
    if connection.execute(f"UPDATE {TABLE} SET state = 'STOPPED' WHERE id = ?", (_TRIAL,)).rowcount != 1:
        raise CannotLeave(f"{CannotLeave.__doc__} an update found no row")
    if connection.execute(f"SELECT {names} FROM {TABLE} WHERE id = ?", (_TRIAL,)).fetchone()[2] != "STOPPED":
        raise CannotLeave(f"{CannotLeave.__doc__} an update had no effect")
    connection.execute(f"DELETE FROM {TABLE} WHERE id = ?", (_TRIAL,))
    connection.execute("ROLLBACK TO trial")
    connection.execute("RELEASE trial")

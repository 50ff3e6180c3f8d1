"""Checks whether a file of the old program can be taken over, before anything in it is changed.

The check builds the file's schema in memory, without its rows, and runs this store's statements on it. If a trigger, a
constraint or another object would make a statement fail later, the check refuses the file and names the object and a
remedy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from libs.errors import BatonError
from libs.ownership.model import Row, Store, Version
from libs.pb.sandbox.v1 import sandbox_pb2 as pb
from libs.sandboxes.schema import SCHEMAS
from libs.store.sqlite_schema import PROTOCOL_COLUMNS, Statements, update_values, values_of
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, PREFIX, SCHEMA_VERSION

TABLE = LAYOUT.table
_TEXTS = ("id", "account", "state", "image", "command", "env", "metadata")
_AFFINITIES = (("INT", "INTEGER"), ("CHAR", "TEXT"), ("CLOB", "TEXT"), ("TEXT", "TEXT"), ("BLOB", "BLOB"))
_REALS = ("REAL", "FLOA", "DOUB")
_OWN = f"{TABLE}_"
"""Prefix of this store's trigger names."""


class UnfitFile(BatonError):
    """The old program's file cannot be taken over as it is. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "UNFIT_FILE"


def check_fitness(connection: sqlite3.Connection, migrate: Callable[[sqlite3.Connection], None]) -> None:
    """Raises UnfitFile, which names every obstacle and its remedy. `migrate` creates this store's schema."""
    obstacles = list(_obstacles(connection, migrate))
    if obstacles:
        raise UnfitFile(f"{UnfitFile.__doc__} " + "; ".join(obstacles))


def check_triggers(connection: sqlite3.Connection) -> None:
    """Check the triggers of a file that was taken over before. Raises UnfitFile."""
    obstacles = [one for one in _triggers(connection) if not one.startswith(f"trigger {_OWN}")]
    if obstacles:
        raise UnfitFile(f"{UnfitFile.__doc__} " + "; ".join(obstacles))


def _obstacles(connection: sqlite3.Connection, migrate: Callable[[sqlite3.Connection], None]) -> Iterator[str]:
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    if encoding != "UTF-8":
        # Names sort differently in another encoding, so the other checks would mean little.
        yield f"its encoding is {encoding}: stop the old program, then `sqlite3 old.db .dump | sqlite3 new.db`"
        return
    found = [*_triggers(connection), *_columns(connection), *_id(connection), *_unique(connection)]
    yield from found
    if not found:
        yield from _trial(connection, migrate)


def _triggers(connection: sqlite3.Connection) -> Iterator[str]:
    """Triggers that only read are obstacles too: copies and handoffs, which change no data, would run them."""
    for (name,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = ? ORDER BY name", (TABLE,)
    ):
        yield f"trigger {name} on {TABLE} would change data without the store: `DROP TRIGGER {name}`"


def _columns(connection: sqlite3.Connection) -> Iterator[str]:
    rows = connection.execute(
        'SELECT name, type, "notnull", dflt_value, hidden FROM pragma_table_xinfo(?)', (TABLE,)
    ).fetchall()
    for name, kind, not_null, default, hidden in rows:
        if name in COLUMNS:
            right = ("TEXT", "BLOB") if name in _TEXTS else ("INTEGER", "REAL", "NUMERIC", "BLOB")
            if _affinity(kind) not in right:
                wanted = "TEXT" if name in _TEXTS else "REAL or INTEGER"
                yield f"column {name} has type {kind}, not {wanted}: {_rebuild(f'`{name} {wanted.split()[0]}`')}"
        elif name in (*PROTOCOL_COLUMNS, "lease", "lease_tick"):
            rename = f"ALTER TABLE {TABLE} RENAME COLUMN {name} TO old_{name}"
            yield f"column {name} has a name that the store needs: `{rename}`"
        elif not_null and default is None and not hidden:
            yield f"column {name} is NOT NULL, and a new record has no value for it: {_rebuild('a default for it')}"


def _affinity(kind: str) -> str:
    """SQLite's rules of column affinity (https://www.sqlite.org/datatype3.html, 3.1)."""
    kind = kind.upper()
    for part, affinity in _AFFINITIES:
        if part in kind:
            return affinity
    if not kind:
        return "BLOB"
    return "REAL" if any(part in kind for part in _REALS) else "NUMERIC"


def _rebuild(how: str) -> str:
    return f"create the table again with {how} and copy the rows"


def _id(connection: sqlite3.Connection) -> Iterator[str]:
    """The id must be unique, with an index in byte order, and each row needs a rowid."""
    try:
        connection.execute(f"SELECT rowid FROM {TABLE} LIMIT 0")
    except sqlite3.OperationalError:
        yield f"table {TABLE} is WITHOUT ROWID: {_rebuild('row numbers')}"
    if not _has_index(connection, "BINARY"):
        if _has_index(connection, None):
            yield f"column id has a collation that is not BINARY, so names have another order: {_rebuild('`id TEXT`')}"
        else:
            yield f"column id has no unique index: `CREATE UNIQUE INDEX {TABLE}_unique_id ON {TABLE} (id)`"


def _unique(connection: sqlite3.Connection) -> Iterator[str]:
    """A unique index on other columns would refuse records that clients may create."""
    for (name,) in connection.execute(
        "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND origin = 'c' ORDER BY name", (TABLE,)
    ):
        columns = [one for (one,) in connection.execute("SELECT name FROM pragma_index_info(?)", (name,))]
        if columns != ["id"]:
            yield f"unique index {name} refuses records that clients may create: `DROP INDEX {name}`"


def _has_index(connection: sqlite3.Connection, collation: str | None) -> bool:
    """Whether a unique index covers exactly the id, in all rows. `collation` None: any collation."""
    indexes = connection.execute(
        'SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial', (TABLE,)
    ).fetchall()
    for (index,) in indexes:
        columns = connection.execute("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
        if len(columns) == 1 and columns[0][0] == "id" and collation in (None, columns[0][1]):
            return True
    return False


def _trial(connection: sqlite3.Connection, migrate: Callable[[sqlite3.Connection], None]) -> Iterator[str]:
    made = [
        sql
        for (sql,) in connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            " ORDER BY type = 'table' DESC, type = 'index' DESC, type = 'view' DESC, rowid"
        )
    ]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
        for sql in made:
            try:
                scratch.execute(sql)
            except sqlite3.Error as error:
                yield f"`{sql}` cannot be used here ({error}): drop it"
                return
        yield from _collations(scratch)
        try:
            migrate(scratch)
        except sqlite3.Error as error:
            yield f"the store's tables conflict with an object of the file ({error}): rename that object"
            return
        yield from _writes(scratch)


def _collations(scratch: sqlite3.Connection) -> Iterator[str]:
    """SQLite reports a column's collation only through an index."""
    for name in COLUMNS:
        scratch.execute(f"CREATE INDEX trial_index ON {TABLE} ({name})")
        (collation,) = scratch.execute("SELECT coll FROM pragma_index_xinfo('trial_index') WHERE key").fetchone()
        scratch.execute("DROP INDEX trial_index")
        if collation != "BINARY":
            yield f"column {name} has collation {collation}, so filters match other texts: {_rebuild('BINARY')}"


def _writes(scratch: sqlite3.Connection) -> Iterator[str]:
    """Insert and update two records in each state, and two stubs."""
    statements = Statements(LAYOUT)
    rows = [
        row
        for number in range(2)
        for row in (
            *(_row(f"{number}-{state}", pb.Sandbox(state=state)) for state in pb.Sandbox.State.values()),
            _row(f"{number}-stub", None),
        )
    ]
    for row in rows:
        try:
            scratch.execute(statements.insert[True], (*values_of(row, LAYOUT), Store.A.value))
            later = Row(row.key, Version(0, 2), Store.A, row.write_version, row.live, row.payload, SCHEMA_VERSION)
            changed = update_values(values_of(later, LAYOUT), Store.A.value, row.version)
            scratch.execute(statements.update[False], changed)
        except sqlite3.Error as error:
            yield f"a record of the store does not fit the table ({error}): {_rebuild('no such constraint')}"
            return


def _row(name: str, sandbox: pb.Sandbox | None) -> Row:
    key = f"{PREFIX}trial-{name}"
    payload = b""
    if sandbox is not None:
        sandbox.name = key
        payload = SCHEMAS.write(sandbox, SCHEMA_VERSION)
    return Row(key, Version(0, 1), Store.A, Version(0, 1), sandbox is not None, payload, SCHEMA_VERSION)


__all__: Sequence[str] = ("UnfitFile", "check_fitness", "check_triggers")

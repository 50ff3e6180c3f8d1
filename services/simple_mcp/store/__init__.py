"""The old service's store: the SQLite file that it always had, extended in place."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.sqlite import Database, Migration, connect, error_of, exclusive, migrate
from libs.store.limits import OutboxLimits
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_recovery import RECOVERY_TABLES
from libs.store.sqlite_schema import (
    PARKED_MESSAGE,
    PROTOCOL_COLUMNS,
    SHARED_TABLES,
    bases_column,
    first_buckets,
    first_values,
    guards,
    lease_columns,
)
from libs.store.sqlite_watch import change_tables
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, OLD_TABLE, old_key, old_row

__all__ = ["MIGRATIONS", "NotTheOldDatabase", "initialise", "open_store"]


class NotTheOldDatabase(BatonError):
    """The file is not a database of the old service."""

    code = "FAILED_PRECONDITION"


def _extend(connection: sqlite3.Connection) -> None:
    """Gives the flat table what the protocol needs and makes a record of every row; then this store owns all names."""
    for name, kind in PROTOCOL_COLUMNS.items():
        connection.execute(f"ALTER TABLE sandboxes ADD COLUMN {name} {kind}")
    _fill(connection)
    for statement in ("CREATE UNIQUE INDEX sandboxes_key ON sandboxes (key)", *guards("sandboxes"), *SHARED_TABLES):
        connection.execute(statement)
    connection.execute(first_buckets(1, Store.A))


def _fill(connection: sqlite3.Connection) -> None:
    columns = [*PROTOCOL_COLUMNS, *COLUMNS]
    update = f"UPDATE sandboxes SET {', '.join(f'{name} = ?' for name in columns)} WHERE rowid = ?"
    taken: set[str] = set()
    before = connection.text_factory
    # What is not UTF-8 must not stop the migration either.
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        found = connection.execute(f"SELECT rowid, {', '.join(COLUMNS)} FROM sandboxes ORDER BY rowid").fetchall()
    finally:
        connection.text_factory = before
    ids = {values[1] for values in found}
    for number, *values in found:
        flat = dict(zip(COLUMNS, values, strict=True))
        key = old_key(flat["id"], number, taken, ids)
        taken.add(key)
        connection.execute(update, (*first_values(old_row(key, flat), LAYOUT), number))


MIGRATIONS = (
    Migration(1, _extend),
    Migration(2, lease_columns("sandboxes")),
    Migration(3, change_tables("sandboxes")),
    Migration(4, RECOVERY_TABLES),
    Migration(5, bases_column("sandboxes")),
    Migration(6, PARKED_MESSAGE),
)


def initialise(path: Path) -> None:
    """Makes an empty database that owns all names, for a new installation of the old service.

    Raises NotTheOldDatabase when there is a file already, AlreadyOpen, StoreUnavailable.
    """
    with exclusive(path):
        if path.exists() and path.stat().st_size:
            raise NotTheOldDatabase(f"{path} exists: to make an empty database name a file that does not")
        try:
            with closing(connect(path, busy_seconds=1.0)) as connection:
                connection.execute(OLD_TABLE)
                migrate(connection, MIGRATIONS, path)
        except sqlite3.Error as error:
            raise error_of(error, path) from error


def _check(path: Path) -> None:
    """An empty database owns nothing: it must not be taken for the old service's."""
    advice = "give the old service's file, or make an empty database once with `simple_mcp init`"
    if not path.exists() or not path.stat().st_size:
        raise NotTheOldDatabase(f"{path} is {'empty' if path.exists() else 'not there'}: {advice}")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('sandboxes')")}
    except sqlite3.DatabaseError as error:
        raise NotTheOldDatabase(f"{path} cannot be read ({error}): {advice}") from error
    if missing := set(COLUMNS) - names:
        raise NotTheOldDatabase(f"{path} has no table `sandboxes` with {', '.join(sorted(missing))}: {advice}")


@asynccontextmanager
async def open_store(path: Path, clock: Clock, limits: OutboxLimits | None = None) -> AsyncIterator[SqliteStore]:
    """The store in the old service's file, which is extended in place the first time.

    Raises NotTheOldDatabase, AlreadyOpen, NewerSchema, StoreUnavailable.
    """
    _check(path)
    async with Database.open(path, MIGRATIONS) as database:
        yield SqliteStore(Store.A, database, LAYOUT, clock, limits)

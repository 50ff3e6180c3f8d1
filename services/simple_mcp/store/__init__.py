"""The old service's store: its existing SQLite file, extended in place."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.sqlite import Database, Migration, connect, error_of, exclusive, migrate, transaction
from libs.store.limits import OutboxLimits
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_aside import ASIDE_TABLES
from libs.store.sqlite_fill import SMALL_ROWS, Fill
from libs.store.sqlite_guards import guard_tables
from libs.store.sqlite_old import OldRows
from libs.store.sqlite_recovery import ORDER_COLUMNS, RECOVERY_TABLES
from libs.store.sqlite_schema import (
    CODE_TABLES,
    PARKED_MESSAGE,
    PROGRESS_MARK,
    SERVED_BY_ID,
    bases_column,
    lease_columns,
    list_indexes,
)
from libs.store.sqlite_watch import change_tables
from services.simple_mcp.store.fitness import UnfitFile, check_fitness, check_triggers
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, OLD_TABLE
from services.simple_mcp.store.takeover import drop_old, is_taken_over, old_rows, take_over

__all__ = ["MIGRATIONS", "NotTheOldDatabase", "UnfitFile", "initialise", "open_store"]


class NotTheOldDatabase(BatonError):
    """The file is not a database of the old service."""

    code = "FAILED_PRECONDITION"


MIGRATIONS = (
    Migration(1, take_over),
    Migration(2, lease_columns("sandboxes")),
    Migration(3, change_tables("sandboxes")),
    Migration(4, RECOVERY_TABLES),
    Migration(5, bases_column("sandboxes")),
    Migration(6, PARKED_MESSAGE),
    Migration(7, guard_tables("sandboxes")),
    Migration(8, ASIDE_TABLES),
    Migration(9, PROGRESS_MARK),
    Migration(10, list_indexes("sandboxes", LAYOUT.filters)),
    Migration(11, ORDER_COLUMNS),
    Migration(12, CODE_TABLES),
    Migration(13, SERVED_BY_ID),
)


def initialise(path: Path) -> None:
    """Create an empty database that owns all names, for a new installation of the old service.

    Raises NotTheOldDatabase if the file exists, AlreadyOpen, StoreUnavailable.
    """
    with exclusive(path):
        if path.exists() and path.stat().st_size:
            raise NotTheOldDatabase(f"{path} exists: to create an empty database, name a new file")
        try:
            with closing(connect(path, busy_seconds=1.0)) as connection:
                connection.execute(OLD_TABLE)
                migrate(connection, MIGRATIONS, path)
        except sqlite3.Error as error:
            raise error_of(error, path) from error


def _prepare(path: Path) -> None:
    """Take over the old program's file, unless that is already done.

    Raises NotTheOldDatabase, UnfitFile, AlreadyOpen, StoreUnavailable.
    """
    # An empty database owns no record: it must not pass for the old service's.
    advice = "name the old service's file, or create an empty database once with `simple_mcp init`"
    if not path.exists() or not path.stat().st_size:
        raise NotTheOldDatabase(f"{path} {'is empty' if path.exists() else 'does not exist'}: {advice}")
    with exclusive(path):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
                names = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('sandboxes')")}
                if missing := set(COLUMNS) - names:
                    lacks = f"no table `sandboxes` with {', '.join(sorted(missing))}"
                    raise NotTheOldDatabase(f"{path} has {lacks}: {advice}")
                if is_taken_over(connection):
                    check_triggers(connection)
                    return
                check_fitness(connection, partial(migrate, migrations=MIGRATIONS, path=path))
        except sqlite3.DatabaseError as error:
            raise NotTheOldDatabase(f"{path} cannot be read ({error}): {advice}") from error
        try:
            with closing(connect(path, busy_seconds=5.0)) as connection, transaction(connection):
                # A number from before the takeover is the old program's own.
                take_over(connection)
                connection.execute("PRAGMA user_version = 1")
        except sqlite3.Error as error:
            raise error_of(error, path) from error


@asynccontextmanager
async def open_store(
    path: Path, clock: Clock, limits: OutboxLimits | None = None, *, filling: bool = True
) -> AsyncIterator[SqliteStore]:
    """Open the store in the old service's file; the first start takes the file over.

    While the store serves, it completes the old rows: all of them, or without `filling` only those that calls need.

    Raises NotTheOldDatabase, UnfitFile, AlreadyOpen, NewerSchema, StoreUnavailable.
    """
    _prepare(path)
    async with Database.open(path, MIGRATIONS) as database:
        rows = await database.write(_left_rows)
        if rows is None:
            yield SqliteStore(Store.A, database, LAYOUT, clock, limits)
            return
        fill = Fill(database, rows, filling=filling)
        async with fill.running(is_small=await database.read(partial(rows.has_at_most, rows=SMALL_ROWS))):
            yield SqliteStore(Store.A, database, LAYOUT, clock, limits, fill)


def _left_rows(connection: sqlite3.Connection) -> OldRows | None:
    """The old rows that are not completed yet. Drops the old table if the last start completed all rows, while no
    transaction reads it."""
    rows = old_rows(connection)
    if rows is not None and rows.has_at_most(connection, 0):
        drop_old(connection)
        return None
    return rows

"""The new service's store on SQLite, for a single process without a database server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from libs.clock import Clock
from libs.ownership.model import Row, Store
from libs.sandboxes.columns import sandbox_columns
from libs.sqlite import Database, Migration
from libs.store.limits import OutboxLimits
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_aside import ASIDE_TABLES
from libs.store.sqlite_guards import guard_tables
from libs.store.sqlite_recovery import ORDER_COLUMNS, RECOVERY_TABLES
from libs.store.sqlite_schema import (
    CODE_TABLES,
    PARKED_MESSAGE,
    PROGRESS_MARK,
    PROTOCOL_COLUMNS,
    SERVED_BY_ID,
    SHARED_TABLES,
    Layout,
    Value,
    bases_column,
    first_buckets,
    guards,
    labels_text,
    lease_columns,
    list_indexes,
)
from libs.store.sqlite_watch import change_tables


def _project(row: Row) -> tuple[Value, ...]:
    columns = sandbox_columns(row)
    equals = columns.equals
    return equals.get("state", ""), equals.get("account", ""), labels_text(columns.labels), columns.lease


LAYOUT = Layout(
    table="record",
    columns=("state", "account", "labels"),
    project=_project,
    filters={"state": "state", "account": "account"},
    labels="labels",
)


def _record_table() -> str:
    columns = ", ".join(
        f"{name} {kind} NOT NULL{' PRIMARY KEY' if name == 'key' else ''}" for name, kind in PROTOCOL_COLUMNS.items()
    )
    own = ", ".join(f"{name} TEXT NOT NULL" for name in LAYOUT.columns)
    return f"CREATE TABLE record ({columns}, {own})"


MIGRATIONS = (
    Migration(1, (_record_table(), *guards("record"), *SHARED_TABLES, first_buckets(0, Store.A))),
    Migration(2, lease_columns("record")),
    Migration(3, change_tables("record")),
    Migration(4, RECOVERY_TABLES),
    Migration(5, bases_column("record")),
    Migration(6, PARKED_MESSAGE),
    Migration(7, guard_tables("record")),
    Migration(8, ASIDE_TABLES),
    Migration(9, PROGRESS_MARK),
    Migration(10, list_indexes("record", LAYOUT.filters)),
    Migration(11, ORDER_COLUMNS),
    Migration(12, CODE_TABLES),
    Migration(13, SERVED_BY_ID),
)


@asynccontextmanager
async def open_store(path: Path, clock: Clock, limits: OutboxLimits | None = None) -> AsyncIterator[SqliteStore]:
    """Open the store in the file `path`, which is created if it does not exist. A new store owns no record.

    Raises AlreadyOpen, NewerSchema, StoreUnavailable.
    """
    async with Database.open(path, MIGRATIONS) as database:
        yield SqliteStore(Store.B, database, LAYOUT, clock, limits)


@asynccontextmanager
async def open_scratch(path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    """Open an empty store in a file beside `path`. The file is removed at the end; one that a killed process left is
    removed first.

    Raises AlreadyOpen while another scratch store is open, StoreUnavailable, DiskFull.
    """
    scratch = path.with_name(f"{path.name}.scratch")
    _remove(scratch)
    try:
        async with open_store(scratch, clock) as store:
            yield store
    finally:
        _remove(scratch)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)

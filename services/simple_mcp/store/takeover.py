"""The first start on a file of the old program: its table is renamed, and a new one takes its name.

How long this takes does not depend on the number of rows. `libs.store.sqlite_old` says how the rows become records.
"""

from __future__ import annotations

import sqlite3

from libs.ownership.model import Store
from libs.store.sqlite_old import FILLING_TABLES, OldRows, old_guards
from libs.store.sqlite_schema import PROTOCOL_COLUMNS, SHARED_TABLES, first_buckets, guards
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, OLD

OLD_SCHEMA = "CREATE TABLE old_schema (number INTEGER PRIMARY KEY, sql TEXT NOT NULL)"
"""Statements that make the table as it was, for the way back (`services.simple_mcp.store.leave`)."""


def is_taken_over(connection: sqlite3.Connection) -> bool:
    """Whether a file is this store's already. The number of its schema does not tell: the old program may have had
    one of its own."""
    found = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('bucket', 'served', 'outbox')"
    ).fetchone()[0]
    columns = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('sandboxes')")}
    return found == 3 and {"key", "bucket", "term", "revision", "owner"} <= columns


def take_over(connection: sqlite3.Connection) -> None:
    """Renames the old table and makes a new one with its name, that has what the protocol needs; then this store owns
    all names."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    made = [
        sql
        for (sql,) in connection.execute(
            "SELECT sql FROM sqlite_master WHERE type IN ('table', 'index') AND lower(tbl_name) = 'sandboxes'"
            " AND sql IS NOT NULL ORDER BY type = 'index'"
        )
    ]
    # Views and foreign keys of other tables go on meaning `sandboxes`.
    connection.execute("PRAGMA legacy_alter_table = ON")
    for statement in (
        f"ALTER TABLE sandboxes RENAME TO {OLD.name}",
        made[0],
        *(f"ALTER TABLE sandboxes ADD COLUMN {name} {kind}" for name, kind in PROTOCOL_COLUMNS.items()),
        "CREATE UNIQUE INDEX sandboxes_key ON sandboxes (key)",
        *guards("sandboxes"),
        *SHARED_TABLES,
        first_buckets(1, Store.A),
        *FILLING_TABLES,
        *old_guards(OLD.name),
        OLD_SCHEMA,
    ):
        connection.execute(statement)
    connection.execute("PRAGMA legacy_alter_table = OFF")
    connection.executemany(
        "INSERT INTO old_schema (sql) VALUES (?)", [(sql,) for sql in (*made, f"PRAGMA user_version = {version}")]
    )


def old_rows(connection: sqlite3.Connection) -> OldRows | None:
    """Those that are not completed, maybe none; None: their table is gone."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (OLD.name,)).fetchone()
    if found is None:
        return None
    known = {*COLUMNS, *PROTOCOL_COLUMNS}
    columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (OLD.name,)).fetchall()
    return OldRows(LAYOUT, OLD, [name for name, hidden in columns if name not in known and not hidden])


def drop_old(connection: sqlite3.Connection) -> None:
    """The empty table."""
    connection.execute(f"DROP TABLE {OLD.name}")

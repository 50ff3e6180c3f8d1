"""Takeover: the first start on a file of the old program renames its table and creates a new one with that name.

The time that it takes does not depend on the number of rows. `libs.store.sqlite_old` turns the old rows into records.
"""

from __future__ import annotations

import sqlite3

from libs.ownership.model import Store
from libs.store.sqlite_old import FILLING_TABLES, OldRows, old_guards
from libs.store.sqlite_schema import PROTOCOL_COLUMNS, SHARED_TABLES, first_buckets, guards
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, OLD

OLD_SCHEMA = "CREATE TABLE old_schema (number INTEGER PRIMARY KEY, sql TEXT NOT NULL)"
"""Table of the statements that restore the old table (`services.simple_mcp.store.leave`)."""


def is_taken_over(connection: sqlite3.Connection) -> bool:
    """Whether a takeover has changed the file already. Its schema's number is no evidence: the old program may have set
    one."""
    found = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('bucket', 'served', 'outbox')"
    ).fetchone()[0]
    columns = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('sandboxes')")}
    return found == 3 and {"key", "bucket", "term", "revision", "owner"} <= columns


def take_over(connection: sqlite3.Connection) -> None:
    """Rename the old table and create a new one with its name and the columns of the protocol. This store then owns all
    names."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    made = [
        sql
        for (sql,) in connection.execute(
            "SELECT sql FROM sqlite_master WHERE type IN ('table', 'index') AND lower(tbl_name) = 'sandboxes'"
            " AND sql IS NOT NULL ORDER BY type = 'index'"
        )
    ]
    # Keeps views and foreign keys of other tables on `sandboxes`.
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
    """The old rows that are not completed, possibly zero. None if their table was dropped."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (OLD.name,)).fetchone()
    if found is None:
        return None
    known = {*COLUMNS, *PROTOCOL_COLUMNS}
    columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (OLD.name,)).fetchall()
    return OldRows(LAYOUT, OLD, [name for name, hidden in columns if name not in known and not hidden])


def drop_old(connection: sqlite3.Connection) -> None:
    """Drop the old table, which must be empty."""
    connection.execute(f"DROP TABLE {OLD.name}")

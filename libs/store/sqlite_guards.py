"""Guards against the loss of rows on SQLite: announced removals, and counts that show lost rows.

A transaction that may remove rows announces it in the table `removal` and withdraws it before the commit. Triggers
refuse every other removal, whichever program attempts it. The counts are in a table of their own, not in the bucket's
row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from libs.store.inspection import Missing


def guard_tables(table: str) -> Callable[[sqlite3.Connection], None]:
    """Return a schema step. `table`: the table of the records. A row without a bucket is counted when it gets one."""

    made = "NEW.bucket IS NOT NULL"

    def change(connection: sqlite3.Connection) -> None:
        for statement in (
            "CREATE TABLE removal (one INTEGER PRIMARY KEY CHECK (one = 1), of_table TEXT NOT NULL)",
            "INSERT INTO removal VALUES (1, '')",
            f"DROP TRIGGER {table}_delete",
            *(_stays(name) for name in (table, "served", "bucket")),
            "CREATE TABLE row_count (bucket INTEGER PRIMARY KEY, records INTEGER NOT NULL)",
            "INSERT INTO row_count SELECT bucket, 0 FROM bucket",
            _counting(table, "counted", "INSERT", made, "records + 1", "NEW"),
            _counting(
                table, "bucketed", "UPDATE", "OLD.bucket IS NULL AND NEW.bucket IS NOT NULL", "records + 1", "NEW"
            ),
            _counting(table, "removed", "DELETE", "OLD.bucket IS NOT NULL", "records - 1", "OLD"),
        ):
            connection.execute(statement)
        count_now(connection, table)

    return change


def _stays(table: str) -> str:
    return (
        f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table}"
        f" WHEN (SELECT of_table FROM removal) IS NOT '{table}'"
        f" BEGIN SELECT RAISE(ABORT, '{table}: rows are never deleted, a deleted record is a tombstone'); END"
    )


def _counting(table: str, name: str, event: str, when: str, records: str, row: str) -> str:
    return (
        f"CREATE TRIGGER {table}_{name} AFTER {event} ON {table} WHEN {when}"
        f" BEGIN UPDATE row_count SET records = {records} WHERE bucket = {row}.bucket; END"
    )


@contextmanager
def removing(connection: sqlite3.Connection, table: str) -> Iterator[None]:
    """Let statements of the block remove rows of this table. Use it inside a transaction."""
    connection.execute("UPDATE removal SET of_table = ?", (table,))
    yield
    connection.execute("UPDATE removal SET of_table = ''")


def count_now(connection: sqlite3.Connection, table: str) -> None:
    """Set each bucket's count to the number of its rows now."""
    connection.execute(
        f"UPDATE row_count SET records = (SELECT count(*) FROM {table} r WHERE r.bucket = row_count.bucket)"
    )


def missing(table: str, buckets: Sequence[int], connection: sqlite3.Connection) -> list[Missing]:
    """Return those of these buckets, or of all, that have lost rows: from the index alone, in one statement."""
    some = f" WHERE bucket IN ({', '.join('?' for _ in buckets)})" if buckets else ""
    found = connection.execute(
        "SELECT c.bucket, c.records, c.found FROM (SELECT bucket, records,"
        f" (SELECT count(*) FROM {table} r WHERE r.bucket = row_count.bucket) AS found FROM row_count{some}) c"
        " WHERE c.records > c.found ORDER BY c.bucket",
        tuple(buckets),
    )
    return [Missing(*values) for values in found]

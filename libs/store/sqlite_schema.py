"""Tables and statements of a store on SQLite.

Two layouts share them. They differ in the table of the records and in its own columns, which are projections of the
payload. The columns of the protocol have the same names in both. `libs.ownership.rules` lists the statements that
change a record's row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.ownership.model import BUCKETS, BucketOwner, Row, Store, Version, bases_of, bases_text, bucket_of

Value = str | bytes | int | float | None

PROTOCOL_COLUMNS = {
    "key": "TEXT",
    "bucket": "INTEGER",
    "term": "INTEGER",
    "revision": "INTEGER",
    "owner": "TEXT",
    "write_term": "INTEGER",
    "write_revision": "INTEGER",
    "bases": "TEXT",
    "live": "INTEGER",
    "schema_version": "INTEGER",
    "payload": "BLOB",
    "digest": "INTEGER",
}
"""Columns of a record's table: name and type."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The table of one service's records."""

    table: str
    columns: tuple[str, ...]
    """The service's own columns."""
    project: Callable[[Row], tuple[Value, ...]]
    """Values of the own columns for a row, in their order, and then the lease's mark (see `Columns.lease` of
    `libs.store.columns`). Both are in the payload, which is parsed once for both."""
    filters: Mapping[str, str]
    """Column by the name that a list's filter uses."""
    labels: str
    """Column of the labels, a JSON object of strings."""
    as_written: Callable[[str, Sequence[Value]], tuple[Value, ...]] = lambda key, own: tuple(own)
    """A record's own columns as `project` would show them, if another program wrote the same values in another form."""


SHARED_TABLES = (
    "CREATE TABLE bucket (bucket INTEGER PRIMARY KEY, term INTEGER NOT NULL, version INTEGER NOT NULL,"
    " owner TEXT NOT NULL)",
    # Ids grow with the ticks when requests were learned, so the oldest are found without another index.
    "CREATE TABLE served (id INTEGER PRIMARY KEY, key TEXT NOT NULL, principal TEXT NOT NULL, request_id TEXT NOT NULL,"
    " request_hash BLOB NOT NULL, term INTEGER NOT NULL, revision INTEGER NOT NULL, learned REAL NOT NULL,"
    " answer BLOB)",
    "CREATE UNIQUE INDEX served_request ON served (key, principal, request_id)",
    "CREATE INDEX served_version ON served (key, term, revision)",
    # Ids only order the entries that exist. Entries are acknowledged by name, so an id may be used again.
    "CREATE TABLE outbox (id INTEGER PRIMARY KEY, key TEXT NOT NULL, term INTEGER NOT NULL, revision INTEGER NOT NULL,"
    " size INTEGER NOT NULL, tick REAL NOT NULL, traceparent TEXT NOT NULL, event BLOB NOT NULL)",
    "CREATE UNIQUE INDEX outbox_change ON outbox (key, term, revision)",
    "CREATE TABLE progress (part INTEGER PRIMARY KEY, next INTEGER NOT NULL)",
    "CREATE TABLE parked (part INTEGER NOT NULL, at INTEGER NOT NULL, key TEXT NOT NULL, reason TEXT NOT NULL,"
    " event BLOB NOT NULL, PRIMARY KEY (part, at))",
    "CREATE TABLE tick (one INTEGER PRIMARY KEY CHECK (one = 1), seconds REAL NOT NULL)",
    "INSERT INTO tick VALUES (1, 0.0)",
    "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO counter VALUES ('applied', 0), ('old', 0), ('parked', 0), ('journaled', 0)",
)


PARKED_MESSAGE = (
    "ALTER TABLE parked ADD COLUMN headers BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE parked ADD COLUMN topic TEXT NOT NULL DEFAULT ''",
)
"""Headers and topic of a parked event's message."""

CODE_TABLES = (
    "ALTER TABLE parked ADD COLUMN unauthenticated INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE checked_from (part INTEGER PRIMARY KEY, start INTEGER NOT NULL)",
    "INSERT INTO counter VALUES ('unauthenticated', 0)",
)
"""Parked events without a right code, and the offsets from which on events need one."""

SERVED_BY_ID = (
    "DROP INDEX served_request",
    "CREATE UNIQUE INDEX served_request ON served (key, request_id, principal)",
)
"""A request is looked up under every principal."""

PROGRESS_MARK = ("ALTER TABLE progress ADD COLUMN mark TEXT NOT NULL DEFAULT ''",)
"""Mark of the last event that was read of a partition."""


def lease_columns(table: str) -> Sequence[str]:
    """Return columns of a record's table: the lease's mark, and the ticks when this store first saw it."""
    return (
        f"ALTER TABLE {table} ADD COLUMN lease TEXT NOT NULL DEFAULT ''",
        f"ALTER TABLE {table} ADD COLUMN lease_tick REAL NOT NULL DEFAULT 0.0",
    )


def bases_column(table: str) -> Callable[[sqlite3.Connection], None]:
    """Return a schema step for a record's table that has one base in two columns, from an earlier release."""

    def change(connection: sqlite3.Connection) -> None:
        names = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
        if "base_term" not in names:
            return
        guard = f"{table}_version"
        (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (guard,)).fetchone()
        for statement in (
            f"DROP TRIGGER {guard}",
            f"ALTER TABLE {table} ADD COLUMN bases TEXT NOT NULL DEFAULT ''",
            f"UPDATE {table} SET bases = base_term || '.' || base_revision WHERE base_term IS NOT NULL",
            f"ALTER TABLE {table} DROP COLUMN base_term",
            f"ALTER TABLE {table} DROP COLUMN base_revision",
            made,
        ):
            connection.execute(statement)

    return change


def first_buckets(version: int, owner: Store) -> str:
    """Return an INSERT of all buckets in term 0."""
    rows = ", ".join(f"({bucket}, 0, {version}, '{owner.value}')" for bucket in range(BUCKETS))
    return f"INSERT INTO bucket VALUES {rows}"


def guards(table: str) -> Sequence[str]:
    """Return indexes of a record's table, and triggers that refuse writes outside the protocol, by any program."""
    return (
        f"CREATE INDEX {table}_bucket ON {table} (bucket, key, owner)",
        f"CREATE TRIGGER {table}_version BEFORE UPDATE ON {table}"
        " WHEN ((NEW.term, NEW.revision) <= (OLD.term, OLD.revision)) IS NOT FALSE OR NEW.key IS NOT OLD.key"
        f" BEGIN SELECT RAISE(ABORT, '{table}: a change must raise (term, revision) and keep the key'); END",
        f"CREATE TRIGGER {table}_insert BEFORE INSERT ON {table}"
        " WHEN NEW.key IS NULL OR NEW.term IS NULL OR NEW.revision IS NULL OR NEW.owner IS NULL"
        f" BEGIN SELECT RAISE(ABORT, '{table}: a new row needs key, term, revision and owner'); END",
        f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{table}: rows are never deleted, a deleted record is a tombstone'); END",
    )


def list_index(table: str, column: str) -> str:
    """Return the name of an index that has the rows with one value of the column in the order of their keys."""
    return f"{table}_{column}_key"


def list_indexes(table: str, filters: Mapping[str, str]) -> Sequence[str]:
    """Return indexes for lists with a filter. If an index does not exist, a list needs more and shorter pages."""
    columns = sorted(filters.values())
    return [f"CREATE INDEX IF NOT EXISTS {list_index(table, name)} ON {table} ({name}, key)" for name in columns]


def signed(digest: int) -> int:
    """Return a digest of 64 bits as the signed integer that SQLite stores."""
    return digest - (1 << 64) if digest >> 63 else digest


def unsigned(digest: int) -> int:
    return digest % (1 << 64)


def values_of(row: Row, layout: Layout) -> tuple[Value, ...]:
    """Return the values of a row's columns: those of the protocol, the layout's own, the lease."""
    return (*protocol_values(row), *layout.project(row))


def protocol_values(row: Row) -> tuple[Value, ...]:
    """Return a row's values in the order of PROTOCOL_COLUMNS."""
    return (
        row.key,
        bucket_of(row.key),
        *row.version,
        row.owner.value,
        *row.write_version,
        bases_text(row.bases),
        int(row.live),
        row.schema_version,
        row.payload,
        signed(row.digest),
    )


def odd_columns(layout: Layout, row: Row, values: Sequence[Value]) -> list[str]:
    """Return the layout's own columns that do not match the record, because another program wrote them. `values`: those
    of the own columns, in order, and of the lease if it is compared too."""
    width = len(layout.columns)
    kept = tuple(values)
    shown = layout.project(row)[: len(kept)]
    if kept != shown:
        kept = (*layout.as_written(row.key, kept[:width]), *kept[width:])
    names = (*layout.columns, "lease")[: len(kept)]
    return [name for name, had, right in zip(names, kept, shown, strict=True) if had != right]


ROW = "r.key, r.term, r.revision, r.owner, r.write_term, r.write_revision, r.live, r.payload, r.schema_version, " + (
    "r.bases"
)
ROW_COLUMNS = 10
ROW_PAYLOAD = 7
"""Index of the payload in ROW."""
BUCKET = "b.bucket, b.term, b.version, b.owner"


STORES = {store.value: store for store in Store}


def row_from(values: Sequence[Any]) -> Row | None:
    """Decode ROW; None if an outer join found no row."""
    key, term, revision, owner, write_term, write_revision, live, payload, schema, bases = values
    if key is None:
        return None
    written = Version(write_term, write_revision)
    return Row(key, Version(term, revision), STORES[owner], written, bool(live), payload, schema, bases_of(bases))


def bucket_owner_from(values: Sequence[Any]) -> BucketOwner:
    """Decode BUCKET."""
    bucket, term, version, owner = values
    return BucketOwner(bucket, term, version, STORES[owner])


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Made once, because `json.dumps` makes one for each call."""


def labels_text(labels: Mapping[str, str]) -> str:
    return _encode(dict(sorted(labels.items()))) if labels else "{}"


VISIBLE = "r.term >= (SELECT b.term FROM bucket b WHERE b.bucket = r.bucket)"
"""Condition on a row: its term is not lower than its bucket's."""


NOT_FENCED = "NOT EXISTS (SELECT 1 FROM standing WHERE gone <> '')"
"""Part of every statement that changes an owned record: the fence may have committed after the call began."""


class Statements:
    """The statements of a layout, made once. The comment above a statement lists its parameters."""

    def __init__(self, layout: Layout) -> None:
        table = layout.table
        columns = [*PROTOCOL_COLUMNS, *layout.columns, "lease"]
        names = ", ".join(columns)
        set_marks = ", ".join(f"{name} = ?" for name in columns)

        # Key, bucket.
        self.read = f"SELECT {ROW}, {BUCKET} FROM bucket b LEFT JOIN {table} r ON r.key = ? WHERE b.bucket = ?"
        # Key, key, request id, bucket.
        self.find = (
            f"SELECT {ROW}, {BUCKET}, s.principal, s.request_hash, s.term, s.revision, s.answer,"
            " iif(r.lease <> '', (SELECT seconds FROM tick) - r.lease_tick, 0.0)"
            f" FROM bucket b LEFT JOIN {table} r ON r.key = ?"
            " LEFT JOIN served s ON s.key = ? AND s.request_id = ? WHERE b.bucket = ?"
        )
        # By `own` (see `Transaction.put`). The change is refused if the statement changes no row.
        # All columns; then the owner that the bucket must have, or None.
        self.insert = {
            own: f"INSERT INTO {table} ({names}, lease_tick)"
            f" WITH made ({names}) AS (VALUES ({', '.join('?' for _ in columns)}))"
            " SELECT made.*, (SELECT seconds FROM tick)"
            f" FROM made JOIN bucket b ON b.bucket = made.bucket AND b.term = made.term AND {owned}"
            for own, owned in ((True, f"b.owner = ? AND {NOT_FENCED}"), (False, "? IS NULL"))
        }
        fences = ((True, f" AND {NOT_FENCED}"), (False, ""))
        # As `update_values` returns them.
        self.update = {
            own: f"UPDATE {table} SET {set_marks},"
            " lease_tick = iif(lease = ?, lease_tick, (SELECT seconds FROM tick))"
            f" WHERE key = ? AND owner = ? AND (term, revision) = (?, ?){fence}"
            for own, fence in fences
        }
        # Owner, term, revision, bases, digest, key; then the owner, term and revision that the row must have.
        self.update_envelope = {
            own: f"UPDATE {table} SET owner = ?, term = ?, revision = ?, bases = ?, digest = ?"
            f" WHERE key = ? AND owner = ? AND (term, revision) = (?, ?){fence}"
            for own, fence in fences
        }
        own = "".join(f", r.{name}" for name in layout.columns)
        self.rows = f"SELECT {ROW}, r.digest{own}, r.lease FROM {table} r"
        self.digests = f"SELECT bucket, owner, digest FROM {table}"
        # From the index alone.
        self.counts = f"SELECT bucket, count(*), sum(owner = ?) FROM {table} GROUP BY bucket ORDER BY bucket"
        self.census = f"SELECT count(*), total(owner = ?) FROM {table}"


def update_values(columns: Sequence[Value], owner: str, version: Version) -> tuple[Value, ...]:
    """Parameters of `Statements.update`: all columns, and the owner and version that the row must have."""
    return (*columns, columns[-1], columns[0], owner, *version)


SERVE = (
    "INSERT INTO served (key, principal, request_id, request_hash, term, revision, learned, answer)"
    " SELECT ?, ?, ?, ?, ?, ?, seconds, ? FROM tick WHERE true ON CONFLICT (key, principal, request_id) DO UPDATE"
    # A new id, because ids grow with the ticks.
    " SET id = (SELECT max(id) + 1 FROM served), request_hash = excluded.request_hash, term = excluded.term,"
    " revision = excluded.revision, learned = excluded.learned, answer = excluded.answer"
)
"""Stores a request that this store has just served."""
LEARN = f"{SERVE} WHERE (served.term, served.revision) < (excluded.term, excluded.revision)"
"""Stores a request that arrives with a record. Of two entries for one request the higher version stays, in any order of
arrival."""

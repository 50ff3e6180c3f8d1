"""Identity of the database behind a connection, and whether the database was restored since the last connection.

The server behind an address may change: a standby is promoted, a database is restored, a data directory is copied back.
So every new connection is checked before it does any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libs.store.recovery import DatabaseReplaced, Identity

DATABASE = (
    "concat_ws('/', s.id, (SELECT system_identifier FROM pg_control_system()),"
    " left(pg_walfile_name(pg_current_wal_flush_lsn()), 8),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()), 'standing'::regclass::oid)"
)
"""An expression over `standing s`: the database's own id, the server's identifier, its timeline, and the OIDs of
database and table."""

CHANGES = "(pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint"
"""Flushed position of the server's write-ahead log, in bytes. It never falls on one server."""

_ASK = f"SELECT {DATABASE} AS database, {CHANGES} AS changes FROM standing s"


@dataclass(slots=True)
class Anchor:
    """Identity of the database that this process works on."""

    known: Identity | None = None

    async def ask(self, connection: Any) -> Identity:
        """Raises DatabaseReplaced; foreign exceptions."""
        # Read before the query: answers of several connections may arrive in another order than they were made.
        before = self.known.changes if self.known is not None else 0
        row = await connection.fetchrow(_ASK)
        if row is None:
            raise DatabaseReplaced("the database has lost its identity: table `standing` is empty")
        found = Identity(row["database"], row["changes"])
        known = self.known
        if known is not None and (found.database != known.database or found.changes < before):
            was = f"{known.database} at {known.changes}"
            raise DatabaseReplaced(f"the database is {found.database} at {found.changes}, it was {was}")
        if known is None or found.changes > known.changes:
            self.known = found
        return found

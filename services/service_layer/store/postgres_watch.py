"""Which records are written, on PostgreSQL.

A position is the snapshot of the last reading statement in the server's notation ("xmin:xmax:xip,..."), prefixed with
the server's identifier, its timeline, and an id that each recovery renews. Later changes are those that the snapshot
does not see. Because a snapshot lists the transactions in progress, a transaction that commits late is not missed, and
readers need not wait for the oldest one, as they would with xmin alone.
"""

from __future__ import annotations

import asyncio

from libs.store.concurrency import Limiter
from libs.store.port import MOST_CHANGED, Since, UnknownPosition
from services.service_layer.store.postgres_context import Context
from services.service_layer.store.postgres_pool import Connection

_FIRST_POLL_SECONDS = 0.02
_LAST_POLL_SECONDS = 0.2

MAX_SCANS = 2
"""Maximum number of concurrent scans by the watchers of a process. A write wakes all watchers, and status calls must
still get a connection."""
_SLOT_SECONDS = 5.0

_MOST_XID = 2**63

# A snapshot of another server, or from before a recovery, is not comparable.
_OF = (
    "(SELECT system_identifier FROM pg_control_system())"
    " || '-' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
    " || '-' || (SELECT watched FROM standing)"
)
_NOW = f"SELECT {_OF} || '/' || pg_current_snapshot()"

AFTER = "c.xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(c.xid, $1::text::pg_snapshot)"
"""The first condition bounds the index scan, the second one decides."""

# Excludes transaction ids that this server has not assigned yet. They come from a dump of another server, and would
# follow every position.
_OF_HERE = "c.xid < pg_snapshot_xmax(pg_current_snapshot())"

# One statement uses one snapshot: a change that it does not see comes after the position that it returns.
_SINCE = f"""
SELECT {_OF} AS of, pg_current_snapshot()::text AS snapshot,
       pg_snapshot_xmax($1::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot()) AS known,
       ARRAY(SELECT c.key FROM change c WHERE {AFTER} AND {_OF_HERE} LIMIT $2) AS keys
"""


class PostgresWatch:
    """`libs.store.port.Watch`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._limiter = Limiter(MAX_SCANS, _SLOT_SECONDS, "a slot to scan for changes")

    async def now(self) -> str:
        async def work(connection: Connection) -> str:
            return str(await connection.fetchval(_NOW))

        async with self._limiter.slot():
            return await self._context.control.run(work)

    async def since(self, position: str, wait_seconds: float) -> Since:
        """Writes of this process end the wait at once. Writes of other processes are found by polling."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        pause = _FIRST_POLL_SECONDS
        written = self._context.written
        while True:
            count = written.count
            found = await self._since(position)
            left = until - loop.time()
            if found.keys or left <= 0:
                return found
            # Move on even without changes: a kept position falls behind the transactions of other programs.
            position = found.position
            if not await written.after(count, min(pause, left)):
                pause = min(pause * 1.5, _LAST_POLL_SECONDS)

    async def _since(self, position: str) -> Since:
        of, _, snapshot = position.partition("/")
        if not _is_snapshot(snapshot):
            raise UnknownPosition

        async def work(connection: Connection) -> Since:
            row = await connection.fetchrow(_SINCE, snapshot, MOST_CHANGED + 1)
            if row["of"] != of or not row["known"] or len(row["keys"]) > MOST_CHANGED:
                raise UnknownPosition
            return Since(tuple(row["keys"]), f"{of}/{row['snapshot']}")

        async with self._limiter.slot():
            return await self._context.control.run(work)


def _is_snapshot(text: str) -> bool:
    """Check a position from a client: the server must be able to read it as a snapshot."""
    first, _, rest = text.partition(":")
    last, _, under_way = rest.partition(":")
    words = [first, *filter(None, under_way.split(",")), last]
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        return False
    *before, end = [int(word) for word in words]
    in_order = before == sorted(before) and before[0] <= end and max(before[1:], default=0) < end
    return in_order and before[0] > 0 and end < _MOST_XID

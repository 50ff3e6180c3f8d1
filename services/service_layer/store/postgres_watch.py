"""Which records are written, on PostgreSQL.

A position is the snapshot of the statement that read so far, as the server writes it ("xmin:xmax:xip,..."), with the
database's system and timeline, and an id that each recovery renews. What is after it is what that snapshot does not
see: it names the transactions that were under way, so one that commits late is found, and nothing waits for the oldest
one as it would behind xmin alone.
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
"""At once, of all watchers of a process: a write wakes all of them, and status must get a connection all the same."""
_SLOT_SECONDS = 5.0

_MOST_XID = 2**63

# A snapshot of another server, or of a time that was undone, says nothing here.
_OF = (
    "(SELECT system_identifier FROM pg_control_system())"
    " || '-' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
    " || '-' || (SELECT watched FROM standing)"
)
_NOW = f"SELECT {_OF} || '/' || pg_current_snapshot()"

AFTER = "c.xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(c.xid, $1::text::pg_snapshot)"
"""The first part bounds the walk of the index, the second one decides."""

# A number that this server has not given yet came with a dump of another one. It would be after every position.
_OF_HERE = "c.xid < pg_snapshot_xmax(pg_current_snapshot())"

# One statement, one snapshot: what it does not show is after the position that it gives.
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
        """Own writes end the wait at once; those of other processes, and what is applied, are found by looking."""
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
            # A position that is kept while nothing happens would fall behind the transactions of others.
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
    """A position comes from outside: what the server would not read as a snapshot is no position."""
    first, _, rest = text.partition(":")
    last, _, under_way = rest.partition(":")
    words = [first, *filter(None, under_way.split(",")), last]
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        return False
    *before, end = [int(word) for word in words]
    in_order = before == sorted(before) and before[0] <= end and max(before[1:], default=0) < end
    return in_order and before[0] > 0 and end < _MOST_XID

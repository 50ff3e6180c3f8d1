"""The connection that holds this process's advisory locks: those of log partitions, and that of the store's clock.

The locks live as long as the session. A process that dies, or whose connection breaks, loses them at once. A paused
process loses them after `IDLE_SECONDS` without a statement. In either case the process may still believe that it holds
them. The progress rows fence it from partitions, and only this connection advances the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import PoolProxiedConnection

from libs.errors import BatonError
from services.service_layer.store.postgres_errors import FOREIGN, translated
from services.service_layer.store.postgres_pool import Connection, Pool

_log = logging.getLogger(__name__)

IDLE_SECONDS = 15
"""Time without a statement after which the server ends the session."""
_PING_SECONDS = 3.0
_FAILURES: tuple[type[Exception], ...] = (BatonError, *FOREIGN)

PARTITIONS = 0x626174
"""First key of the locks of partitions. The second key is the partition."""
ROLES = 0x626175
MEMBER = 1
"""Shared lock of every process. The number of its holders is the number of processes that share the partitions."""
CLOCK = 2

_HELD = """
SELECT classid, objid, count(*) AS holders, bool_or(pid = pg_backend_pid()) AS mine FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid IN ($1::oid, $2::oid) AND objsubid = 2 AND granted GROUP BY classid, objid
"""
MEMBERS = """
SELECT count(*)::integer FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = $1::oid AND objid = $2::oid AND objsubid = 2 AND granted
"""
"""Number of processes that share this database. One that has just started may not count yet."""
_TRY = "SELECT part FROM unnest($2::integer[]) part WHERE pg_try_advisory_lock($1, part)"
_UNLOCK = "SELECT pg_advisory_unlock($1, part) FROM unnest($2::integer[]) part"
_TRY_CLOCK = f"SELECT pg_try_advisory_lock({ROLES}, {CLOCK})"
_JOIN = f"SELECT pg_advisory_lock_shared({ROLES}, {MEMBER})"
_ADVANCE = "UPDATE tick SET now = now + $1"


@dataclass(frozen=True, slots=True)
class _Held:
    members: int
    is_member: bool
    mine: frozenset[int]
    others: frozenset[int]


class Session:
    """A connection with advisory locks. It is opened on first use, and again after it was lost."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._leased: PoolProxiedConnection | None = None
        self._has_clock = False
        self._lock = asyncio.Lock()
        self._pings: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Session open={self._leased is not None} clock={self._has_clock}>"

    async def open(self) -> None:
        """Connect, and take the clock if it is free."""
        async with self._connected() as connection:
            self._has_clock = await connection.fetchval(_TRY_CLOCK)
        self._pings = asyncio.get_running_loop().create_task(self._ping())

    async def claim(self, partitions: int) -> list[int]:
        """Claim a fair share of the partitions, given those that other processes hold now."""
        async with self._connected() as connection:
            held = await _held(connection)
            if not held.is_member:
                await connection.execute(_JOIN)
                held = await _held(connection)
            share = -(-partitions // held.members)
            kept = sorted(one for one in held.mine if one < partitions)[:share]
            if surplus := held.mine.difference(kept):
                await connection.fetch(_UNLOCK, PARTITIONS, sorted(surplus))
            free = [one for one in range(partitions) if one not in held.mine and one not in held.others]
            if wanted := free[: share - len(kept)]:
                kept += [row["part"] for row in await connection.fetch(_TRY, PARTITIONS, wanted)]
            return sorted(kept)

    async def tick(self, elapsed_seconds: float) -> bool:
        """Advance the clock if this process holds it, and return whether it did.

        A process that has just taken the clock does not advance it: the previous holder may have counted the same time,
        and ticks must never run ahead of real time.
        """
        async with self._connected() as connection:
            if not self._has_clock:
                self._has_clock = await connection.fetchval(_TRY_CLOCK)
                return False
            await connection.execute(_ADVANCE, max(0, int(elapsed_seconds * 1000)))
            return True

    async def close(self) -> None:
        """Release the locks, cleanly if the server answers."""
        if self._pings is not None:
            async with self._lock:
                self._pings.cancel()
            await asyncio.wait([self._pings])
        if self._leased is not None:
            with contextlib.suppress(BatonError):
                async with self._connected() as connection:
                    await connection.execute("SELECT pg_advisory_unlock_all()")
        self._drop()

    async def _ping(self) -> None:
        """Keep the session alive between claims and ticks while this process runs."""
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                async with self._connected() as connection:
                    await connection.execute("SELECT 1")
            except _FAILURES as error:
                _log.warning("the session with this process's advisory locks was lost: %s", error)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        """The connection, for one user at a time. Any failure closes it, which ends its locks."""
        async with self._lock:
            try:
                if self._leased is None or self._leased.driver_connection.is_closed():  # type: ignore[union-attr]
                    self._drop()
                    self._leased = await self._pool.lease()
                yield self._leased.driver_connection
            except FOREIGN as error:
                self._drop()
                raise (translated(error) or error) from error
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        leased, self._leased = self._leased, None
        self._has_clock = False
        if leased is not None:
            self._pool.give_back(leased, reusable=False)


async def _held(connection: Connection) -> _Held:
    rows = await connection.fetch(_HELD, PARTITIONS, ROLES)
    member = next((row for row in rows if row["classid"] == ROLES and row["objid"] == MEMBER), None)
    parts = [row for row in rows if row["classid"] == PARTITIONS]
    mine = frozenset(row["objid"] for row in parts if row["mine"])
    others = frozenset(row["objid"] for row in parts) - mine
    return _Held(member["holders"] if member else 0, member is not None and member["mine"], mine, others)

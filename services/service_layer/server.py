"""Identity of the PostgreSQL server that a database is on."""

from __future__ import annotations

import logging

import asyncpg

log = logging.getLogger(__name__)

_SECONDS = 5.0


async def server_id(dsn: str) -> str:
    """Return the server's system identifier, or "" if this user may not read it or the server does not answer."""
    try:
        connection = await asyncpg.connect(dsn, timeout=_SECONDS)
        try:
            found = await connection.fetchval(
                "SELECT system_identifier::text FROM pg_control_system()", timeout=_SECONDS
            )
            return str(found)
        finally:
            await connection.close(timeout=_SECONDS)
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        log.warning("the server's identity could not be read: %s", error)
        return ""

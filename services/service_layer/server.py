"""Which PostgreSQL server a database is on."""

from __future__ import annotations

import logging

import asyncpg

log = logging.getLogger(__name__)

_SECONDS = 5.0


async def server_id(dsn: str) -> str:
    """The server's system identifier; "" when this user may not ask for it or the server does not answer now."""
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
        log.warning("the server's identity is not known: %s", error)
        return ""

"""Fitness of a PostgreSQL database for Baton, checked at the start, before anything is written.

Each check reports the value that it found and the remedy. An unfit database would not fail at once: it would lose
acknowledged writes after a power loss, refuse some names, or break a feed in the middle of a migration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from libs.errors import BatonError

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 5.0

DURABLE = ("on", "remote_apply")
"""Values of `synchronous_commit` with which a committed change survives a power loss of the server."""

_POOLER = (
    "a pooler stands before the database: sessions must keep their settings, advisory locks and prepared statements;"
    " give the server's own address (a process keeps a few connections of its own, see `baton bench pool`)"
)
_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_PROBE = "4321ms"
"""A session setting that no server has by default. A pooler refuses it, or drops it silently."""

_Connection: TypeAlias = Any


class UnfitDatabase(BatonError):
    """The database cannot give the guarantees of this store."""


REQUIRED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "server_encoding": (
        ("UTF8",),
        "names and texts are any Unicode: create the database with ENCODING 'UTF8' TEMPLATE template0",
    ),
    "synchronous_commit": (DURABLE, "acknowledged writes could be lost: set it to on"),
    "fsync": (("on",), "acknowledged writes could be lost: set it to on"),
}
"""Server settings: the valid values, and the remedy."""


async def check_fitness(dsn: str) -> None:
    """Raises UnfitDatabase with the first unfit setting and its remedy, and asyncpg's errors.

    `dsn`: asyncpg's form, "postgresql://user@host:port/database".
    """
    check_files(dsn)
    try:
        connection = await _connect(dsn)
    except asyncpg.ProtocolViolationError as error:
        raise UnfitDatabase(_POOLER, detail=str(error)) from error
    try:
        await _check_server(connection)
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


def check_files(dsn: str) -> None:
    """Check that the files for TLS in the address can be read: the driver's error does not name them.

    Raises UnfitDatabase.
    """
    for name, value in parse_qsl(urlsplit(dsn).query):
        if name in _FILES:
            try:
                Path(value).read_bytes()
            except OSError as error:
                raise UnfitDatabase(
                    f"{name} in the database's address: {value} cannot be read: {error.strerror}; give the path of a"
                    " PEM file"
                ) from None


async def _connect(dsn: str) -> _Connection:
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_SECONDS,
        command_timeout=COMMAND_SECONDS,
        # Prepared statements do not survive a transaction pooler, and this check must complete.
        statement_cache_size=0,
        server_settings={"lock_timeout": _PROBE},
    )


async def _check_server(connection: _Connection) -> None:
    if await connection.fetchval("SELECT current_setting('lock_timeout')") != _PROBE:
        raise UnfitDatabase(_POOLER)
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        raise UnfitDatabase("the database server is a standby: give the primary's address")
    for setting, (good, remedy) in REQUIRED.items():
        value = await connection.fetchval("SELECT current_setting($1)", setting)
        if value not in good:
            raise UnfitDatabase(f"{setting}: {value} is not valid: {remedy}")

"""The schema's version and migrations, and the check that a server is fit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from libs.errors import NewerSchema, StoreUnavailable
from libs.postgres import UnfitDatabase, check_fitness
from services.service_layer.store.postgres_errors import FOREIGN, translated
from services.service_layer.store.postgres_pool import DRIVER, driver_dsn

COMMAND = "python -m services.service_layer migrate"

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6261746F6E  # one bigint in the server's space of advisory locks
_LOCK_SECONDS = 60
_CONNECT_SECONDS = 5.0
_COMMAND_SECONDS = 3600.0


async def migrate(dsn: str, search_path: str = "") -> str:
    """Migrate the schema to this program's version and return that version. A lock admits one process at a time.

    `search_path`: the database schema for the tables. "": the server's default for this user.

    Raises NewerSchema, UnfitDatabase, StoreUnavailable.
    """
    async with _connection(dsn, search_path) as connection:
        await _migrate(connection)
    return _head()


async def check(dsn: str, *, after_migration: bool = False) -> str:
    """Return the server's name and version for people. `after_migration`: migrate the schema first, as `migrate` does.

    Raises UnfitDatabase for an unfit server (`libs.postgres`) and for an older or missing schema; NewerSchema;
    StoreUnavailable.
    """
    async with _connection(dsn) as connection:
        if after_migration:
            await _migrate(connection)
        return await _check(connection)


@asynccontextmanager
async def _connection(dsn: str, search_path: str = "") -> AsyncIterator[AsyncConnection]:
    """A connection to a server that is fit, without the pools' settings: it shows the server's own defaults."""
    address = driver_dsn(dsn)
    engine = create_async_engine(
        DRIVER,
        poolclass=NullPool,
        connect_args={
            "dsn": address,
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _COMMAND_SECONDS,
            "server_settings": {"search_path": search_path} if search_path else {},
        },
    )
    try:
        await check_fitness(address)
        async with engine.connect() as connection:
            yield connection
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error
    finally:
        await engine.dispose()


async def _migrate(connection: AsyncConnection) -> None:
    async with connection.begin():
        await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        await connection.run_sync(_upgrade)


async def _check(connection: AsyncConnection) -> str:
    version = await connection.run_sync(_version)
    if version != _head():
        _refuse_newer(version)
        found = "none" if version is None else version
        raise UnfitDatabase(f"database schema: {found}, expected {_head()}: run `{COMMAND}`")
    server = (await connection.execute(text("SHOW server_version"))).scalar_one()
    return f"postgresql {str(server).split()[0]}"


def _upgrade(connection: Connection) -> None:
    version = _version(connection)
    _refuse_newer(version)
    if version != _head():
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return version


def _refuse_newer(version: str | None) -> None:
    if version is not None and version not in _versions():
        raise NewerSchema(
            f"database schema: {version} is newer than {_head()}, the newest that this program supports:"
            " run the newer program or restore an older backup"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _head() -> str:
    return _versions()[0]


@cache
def _versions() -> tuple[str, ...]:
    """The versions that this program supports, newest first. To read them from the files takes longer than a query."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())

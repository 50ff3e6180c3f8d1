"""The schema's version and migrations, and the check that a server is fit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
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
    return await _with_engine(dsn, change=True, search_path=search_path)


async def check(dsn: str) -> str:
    """Return the server's name and version for people.

    Raises UnfitDatabase for an unfit server (`libs.postgres`) and for an older or missing schema; NewerSchema;
    StoreUnavailable.
    """
    return await _with_engine(dsn, change=False)


async def _with_engine(dsn: str, *, change: bool, search_path: str = "") -> str:
    address = driver_dsn(dsn)
    # Plain connections without the pools' settings: they show the server's own defaults.
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
        return await (_migrate(engine) if change else _check(engine))
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error
    finally:
        await engine.dispose()


async def _migrate(engine: AsyncEngine) -> str:
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        await connection.run_sync(_upgrade)
    return _head()


async def _check(engine: AsyncEngine) -> str:
    async with engine.connect() as connection:
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

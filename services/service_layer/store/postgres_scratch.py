"""A scratch store: an empty store in its own schema of the same database, in which an audit tries records.

The schema is dropped when the block ends, however it ends. If a killed process left a schema, the next scratch store
drops it first. An advisory lock allows one scratch store per database. The scratch store has only the connections for
calls, so it does not compete for the store's clock or for partitions of the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from libs.clock import Clock
from libs.errors import BatonError, Overloaded, StoreUnavailable
from libs.ownership.model import Store
from libs.sandboxes.columns import sandbox_columns
from libs.store.limits import OutboxLimits
from libs.store.port import Records, Transfers
from services.service_layer.store.postgres_context import Context, Gauge
from services.service_layer.store.postgres_errors import FOREIGN, translated
from services.service_layer.store.postgres_identity import Anchor
from services.service_layer.store.postgres_pool import Connection, Pool, PoolSettings, make_engine
from services.service_layer.store.postgres_records import PostgresRecords
from services.service_layer.store.postgres_schema import migrate
from services.service_layer.store.postgres_transaction import PostgresTransactions
from services.service_layer.store.postgres_transfers import PostgresTransfers

SCHEMA = "baton_scratch"
MARK = "made by baton to try records out in: may be dropped"
LOCK = 0x6261746F6E7363  # one bigint in the server's space of advisory locks

_CONNECT_SECONDS = 5.0
_STATEMENT_SECONDS = 20.0
_SIZE = 2

_FOUND = "SELECT obj_description(oid, 'pg_namespace') AS mark FROM pg_namespace WHERE nspname = $1"
_DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
_CREATE = f"CREATE SCHEMA {SCHEMA}; COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'"


class NoScratch(BatonError):
    """The database does not allow a scratch schema, so no records can be tried."""

    code = "FAILED_PRECONDITION"
    reason = "NO_SCRATCH"


@dataclass(frozen=True, slots=True)
class Scratch:
    """`libs.backend.audit.ScratchStore`."""

    records: Records
    transfers: Transfers


@asynccontextmanager
async def open_scratch(dsn: str, clock: Clock) -> AsyncIterator[Scratch]:
    """Open a scratch store.

    Raises NoScratch if this user may not create a schema or a foreign schema has its name; Overloaded while another
    scratch store is open; StoreUnavailable.
    """
    async with AsyncExitStack() as stack:
        guard = await _connected(dsn, stack)
        await _make(guard, stack)
        await migrate(dsn, SCHEMA)
        settings = PoolSettings()
        pool = Pool("scratch", make_engine(dsn, _SIZE, settings, search_path=SCHEMA), _SIZE)
        stack.push_async_callback(pool.close)
        gauge = Gauge(pool)
        stack.push_async_callback(gauge.close)
        context = Context(
            me=Store.B,
            clock=clock,
            limits=OutboxLimits(),
            columns_of=sandbox_columns,
            requests=pool,
            apply=pool,
            control=pool,
            gauge=gauge,
            anchor=Anchor(),
            connections=settings.connections,
        )
        transactions = PostgresTransactions(context)
        yield Scratch(PostgresRecords(context, transactions), PostgresTransfers(context, transactions))


async def _make(guard: Connection, stack: AsyncExitStack) -> None:
    """Create the schema. The stack drops it after closing its users."""
    try:
        if not await guard.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
            raise Overloaded("another audit is trying records in this database: try again later")
        found = await guard.fetchrow(_FOUND, SCHEMA)
        if found is not None and found["mark"] != MARK:
            raise NoScratch(f"schema {SCHEMA} exists and is not a scratch schema: rename it")
        stack.push_async_callback(_drop, guard)
        await guard.execute(f"{_DROP}; {_CREATE}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise NoScratch(f"{error}: grant the user the right to create a schema (GRANT CREATE ON DATABASE)") from None
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error


async def _drop(guard: Connection) -> None:
    try:
        await guard.execute(_DROP)
    except FOREIGN as error:
        raise StoreUnavailable(f"schema {SCHEMA} could not be dropped; the next trial drops it: {error}") from error


async def _connected(dsn: str, stack: AsyncExitStack) -> Connection:
    """Open the connection that holds the lock. The stack closes it."""
    try:
        guard = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS, command_timeout=_STATEMENT_SECONDS)
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error
    stack.push_async_callback(guard.close, timeout=_CONNECT_SECONDS)
    return guard

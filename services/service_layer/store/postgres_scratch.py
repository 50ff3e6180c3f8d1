"""An empty store of the real kind, in a schema of its own beside the real one, to try records out in.

The schema is dropped when the block ends, however it ends. One that a killed process left is dropped before the next
one is made. An advisory lock keeps it to one at a time in a database. Of a store's connections it has only those for
calls: it must not take part in who has the store's clock or reads the log.
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
    """There is no place to try records out in."""

    code = "FAILED_PRECONDITION"
    reason = "NO_SCRATCH"


@dataclass(frozen=True, slots=True)
class Scratch:
    """As `libs.backend.audit.ScratchStore`."""

    records: Records
    transfers: Transfers


@asynccontextmanager
async def open_scratch(dsn: str, clock: Clock) -> AsyncIterator[Scratch]:
    """Raises NoScratch when this user may not make a schema or the name is somebody else's; Overloaded while another
    one is there; StoreUnavailable."""
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
    """Makes the schema; it is dropped with the stack, after all that uses it."""
    try:
        if not await guard.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
            raise Overloaded("other records are tried out in this database: try again a little later")
        found = await guard.fetchrow(_FOUND, SCHEMA)
        if found is not None and found["mark"] != MARK:
            raise NoScratch(f"schema {SCHEMA} is there and was not made for this: rename it")
        stack.push_async_callback(_drop, guard)
        await guard.execute(f"{_DROP}; {_CREATE}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise NoScratch(f"{error}: the user needs the right to make a schema (GRANT CREATE ON DATABASE)") from None
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error


async def _drop(guard: Connection) -> None:
    try:
        await guard.execute(_DROP)
    except FOREIGN as error:
        raise StoreUnavailable(f"schema {SCHEMA} could not be dropped; the next trial drops it: {error}") from error


async def _connected(dsn: str, stack: AsyncExitStack) -> Connection:
    """Closed with the stack, which ends the lock."""
    try:
        guard = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS, command_timeout=_STATEMENT_SECONDS)
    except FOREIGN as error:
        raise (translated(error) or StoreUnavailable(str(error))) from error
    stack.push_async_callback(guard.close, timeout=_CONNECT_SECONDS)
    return guard

"""The store of `service_layer` on PostgreSQL: `open_store`.

Beside this module: `postgres_sql` (the statements that enforce the protocol), `postgres_pool` (connections,
transactions, cancelled callers), `postgres_errors` (foreign exceptions), `postgres_schema` (migrations, fitness of the
server), `postgres_session` (advisory locks), and one module for each port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from libs.clock import Clock, SystemClock
from libs.errors import StoreUnavailable
from libs.ownership.model import Store
from libs.sandboxes.columns import sandbox_columns
from libs.store.aside import Aside
from libs.store.columns import ColumnsOf
from libs.store.connections import OWN, PoolState
from libs.store.inspection import Inspection
from libs.store.limits import OutboxLimits
from libs.store.outbox import Outbox
from libs.store.port import Feed, Records, Transfers, Upkeep, Watch
from libs.store.recovery import Recovery, Seizures
from services.service_layer.store.postgres_aside import PostgresAside
from services.service_layer.store.postgres_context import Context, Gauge
from services.service_layer.store.postgres_errors import FOREIGN, translated
from services.service_layer.store.postgres_feed import PostgresFeed, PostgresUpkeep
from services.service_layer.store.postgres_identity import Anchor
from services.service_layer.store.postgres_inspection import PostgresInspection
from services.service_layer.store.postgres_outbox import PostgresOutbox
from services.service_layer.store.postgres_pool import Pool, PoolSettings, make_engine
from services.service_layer.store.postgres_records import PostgresRecords
from services.service_layer.store.postgres_recovery import PostgresRecovery
from services.service_layer.store.postgres_schema import check, migrate
from services.service_layer.store.postgres_session import IDLE_SECONDS, Session
from services.service_layer.store.postgres_terms import PostgresSeizures
from services.service_layer.store.postgres_transaction import PostgresTransactions
from services.service_layer.store.postgres_transfers import PostgresTransfers
from services.service_layer.store.postgres_watch import PostgresWatch

__all__ = ["PoolSettings", "PostgresOptions", "PostgresStore", "migrate", "open_store"]


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """Options of a store, apart from its address."""

    store: Store = Store.B
    pools: PoolSettings = field(default_factory=PoolSettings)
    columns_of: ColumnsOf = sandbox_columns
    migrate: bool = True
    """Migrate an older schema, or an empty database, to this release. False: refuse it; the error names the command."""


class PostgresStore:
    """An open store: `libs.store.port.StorePorts`."""

    def __init__(self, context: Context, session: Session, backend: str) -> None:
        transactions = PostgresTransactions(context)
        self.context = context
        self.store = context.me
        self.backend = backend
        self.requests = context.requests
        self.apply = context.apply
        self.control = context.control
        self.records: Records = PostgresRecords(context, transactions)
        self.transfers: Transfers = PostgresTransfers(context, transactions)
        self.outbox: Outbox = PostgresOutbox(context)
        self.aside: Aside = PostgresAside(context)
        self.feed: Feed = PostgresFeed(context, transactions, session)
        self.inspection: Inspection = PostgresInspection(context)
        self.watch: Watch = PostgresWatch(context)
        self.upkeep: Upkeep = PostgresUpkeep(context, session)
        self.recovery: Recovery = PostgresRecovery(context, transactions)
        self.seizures: Seizures = PostgresSeizures(context, transactions)

    @property
    def connections_in_use(self) -> int:
        """Connections in use by calls, the feed and control, without those that the process always keeps."""
        return self.requests.in_use + self.apply.in_use + self.control.in_use

    @property
    def pools(self) -> tuple[PoolState, ...]:
        return self.requests.state, self.apply.state, self.control.state

    def __repr__(self) -> str:
        return f"<PostgresStore {self.store} {self.backend} {self.requests!r} {self.apply!r} {self.control!r}>"


@asynccontextmanager
async def open_store(
    dsn: str,
    clock: Clock | None = None,
    limits: OutboxLimits | None = None,
    options: PostgresOptions | None = None,
) -> AsyncIterator[PostgresStore]:
    """Open the store in a database. At the end, wait for work under way, with a bound, and close the connections.

    Raises StoreUnavailable, NewerSchema. Raises UnfitDatabase for a standby, for a server whose commits are not durable
    and, if `options.migrate` is False, for a schema that is missing or older.
    """
    options = options or PostgresOptions()
    backend = await check(dsn, after_migration=options.migrate)
    async with AsyncExitStack() as stack:
        anchor = Anchor()
        requests, apply, control, own = await _pools(dsn, options.pools, stack, anchor)
        gauge = Gauge(own)
        stack.push_async_callback(gauge.close)
        session = Session(own)
        stack.push_async_callback(session.close)
        context = Context(
            me=options.store,
            clock=clock or SystemClock(),
            limits=limits or OutboxLimits(),
            columns_of=options.columns_of,
            requests=requests,
            apply=apply,
            control=control,
            connections=options.pools.connections,
            gauge=gauge,
            anchor=anchor,
        )
        try:
            await session.open()
        except FOREIGN as error:
            raise (translated(error) or StoreUnavailable(str(error))) from error
        yield PostgresStore(context, session, backend)


async def _pools(dsn: str, settings: PoolSettings, stack: AsyncExitStack, anchor: Anchor) -> list[Pool]:
    idle = str(IDLE_SECONDS * 1000)
    kinds: tuple[tuple[str, int, dict[str, str]], ...] = (
        ("request", settings.request_pool, {}),
        ("apply", settings.apply_pool, {}),
        ("control", settings.control_pool, {}),
        ("own", OWN, {"idle_session_timeout": idle}),
    )
    pools = [Pool(name, make_engine(dsn, size, settings, **more), size, anchor) for name, size, more in kinds]
    for pool in pools:
        stack.push_async_callback(pool.close)
    return pools

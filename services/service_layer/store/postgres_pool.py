"""Connections and transactions: SQLAlchemy owns the pools, statements run on asyncpg's connection below.

A piece of work runs in its own task, which survives the cancellation of its caller. A cancel during COMMIT could
otherwise commit the row while the caller gets an error, or return a connection inside a transaction to the pool.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.errors import BatonError, LockTimeout, Overloaded, StoreUnavailable
from libs.postgres import UnfitDatabase
from libs.store.connections import (
    APPLY_POOL,
    CONTROL_POOL,
    PoolState,
    default_request_pool,
    local_cores,
    per_process,
)
from libs.store.transaction import StartAgain
from services.service_layer.store.postgres_errors import FOREIGN, breaks_connection, translated
from services.service_layer.store.postgres_identity import Anchor

T = TypeVar("T")
Connection: TypeAlias = Any
"""An `asyncpg.Connection`; asyncpg is not typed."""
Work = Callable[[Connection], Awaitable[T]]

_log = logging.getLogger(__name__)

_ATTEMPTS = 40
"""Number of attempts of a piece of work before its record counts as busy."""
_PAUSE_SECONDS = 0.002
_CONNECT_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_TASKS_PER_CONNECTION = 32
_RECOGNISED = "recognised"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Sizes and timeouts of this process's connection pools."""

    request_pool: int = field(default_factory=lambda: default_request_pool(local_cores()))
    """Connections for calls of clients and handoffs."""
    apply_pool: int = APPLY_POOL
    """Connections for the feed, the outbox and upkeep. Separate, so that a flood of events does not block calls."""
    control_pool: int = CONTROL_POOL
    """Connections for status, copies and digests. Separate, because they may read every row while the feed goes on."""
    pool_timeout_seconds: float = 1.0
    """Maximum wait for a connection, after which the call is refused (Overloaded)."""
    statement_timeout_seconds: float = 5.0
    lock_timeout_seconds: float = 1.0
    """Maximum wait for a row's lock, after which the record counts as busy (LockTimeout)."""
    idle_in_transaction_seconds: float = 2.0
    """Maximum silence of a process in a transaction, after which the database ends it."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name}: {value!r} is not valid: it must be more than 0")
        if self.lock_timeout_seconds >= self.statement_timeout_seconds:
            raise ValueError(
                f"lock_timeout_seconds: {self.lock_timeout_seconds!r} is not valid: it must be less than"
                f" statement_timeout_seconds ({self.statement_timeout_seconds!r}), or it never fires"
            )

    @property
    def connections(self) -> int:
        """Number of connections of a process whose pools are full."""
        return per_process(self.request_pool, self.apply_pool, self.control_pool)


DRIVER = "postgresql+asyncpg://"
"""Address for SQLAlchemy; the driver gets the real one."""


def normalised(dsn: str) -> str:
    """The dsn with SQLAlchemy's asyncpg scheme. Raises UnfitDatabase."""
    try:
        url = make_url(dsn)
    except ArgumentError:
        raise UnfitDatabase("database dsn: not valid: use postgresql://user@host:port/database") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UnfitDatabase(f"database dsn: {url.drivername}:// is not valid: use postgresql://")
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def driver_dsn(dsn: str) -> str:
    """The dsn for asyncpg itself, which understands sslmode, sslrootcert and passfile; SQLAlchemy's addresses do not.
    Raises UnfitDatabase."""
    return normalised(dsn).replace("+asyncpg", "", 1)


def make_engine(dsn: str, size: int, settings: PoolSettings, **server_settings: str) -> AsyncEngine:
    """Make a pool of `size` connections to the primary.

    All hot statements find rows by index. Plans without an index are disabled: one that was cached while a table was
    small would stay in use until fresh statistics arrive. `synchronous_commit` is set per session, so that a changed
    server default cannot weaken it. There is no ping before use: the driver reports a closed connection without one,
    and a call on a dying connection can be retried with its request_id.
    """

    def milliseconds(seconds: float) -> str:
        return str(int(seconds * 1000))

    return create_async_engine(
        DRIVER,
        pool_size=size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout_seconds,
        pool_use_lifo=True,
        connect_args={
            "dsn": driver_dsn(dsn),
            "timeout": _CONNECT_SECONDS,
            # Longer than the server's own timeout: it fires only if the server does not answer at all.
            "command_timeout": settings.statement_timeout_seconds + 1.0,
            "target_session_attrs": "primary",
            "statement_cache_size": 200,
            "server_settings": {
                "application_name": "baton service_layer",
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                "statement_timeout": milliseconds(settings.statement_timeout_seconds),
                "lock_timeout": milliseconds(settings.lock_timeout_seconds),
                "idle_in_transaction_session_timeout": milliseconds(settings.idle_in_transaction_seconds),
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
                "enable_seqscan": "off",
                "enable_hashjoin": "off",
                "enable_mergejoin": "off",
                "jit": "off",
                **server_settings,
            },
        },
    )


class Pool:
    """A pool of connections, with the tasks that use it."""

    def __init__(self, name: str, engine: AsyncEngine, size: int, anchor: Anchor | None = None) -> None:
        """`anchor`: the database that every new connection must reach. None: any database."""
        self.name = name
        self.engine = engine
        self._anchor = anchor
        self._most_tasks = size * _TASKS_PER_CONNECTION
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leased = 0
        self._waiting = 0
        self._timeouts = 0
        self._turns = 0
        """Number of times that a connection was taken or given back."""

    def __repr__(self) -> str:
        return f"<Pool {self.name} tasks={len(self._tasks)} {self.engine.pool.status()}>"

    @property
    def in_use(self) -> int:
        """Number of connections in use."""
        return int(self.engine.pool.checkedout())  # type: ignore[attr-defined]

    async def run(self, work: Work[T]) -> T:
        """Run `work` on a connection, in its own task, and again if it raises StartAgain.

        Raises Overloaded, LockTimeout, StoreUnavailable, DiskFull, and the errors of `work`.
        """
        if len(self._tasks) >= self._most_tasks:
            raise Overloaded(f"{len(self._tasks)} calls wait for a connection of the {self.name} pool")
        task = asyncio.get_running_loop().create_task(self._work(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StoreUnavailable("the store was closed during the call") from None
            raise

    async def close(self) -> None:
        """Wait for work under way, then close the connections. Bounded."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_SECONDS)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.engine.dispose()
        except FOREIGN as error:
            _log.warning("closing the %s pool failed: %r", self.name, error)

    async def _work(self, work: Work[T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                async with self.connection() as connection:
                    return await work(connection)
            except StartAgain:
                # A random, growing pause: transactions that conflicted once would otherwise conflict again.
                await asyncio.sleep(random.random() * _PAUSE_SECONDS * min(attempt, 10))
        raise LockTimeout(f"{_ATTEMPTS} attempts met concurrent changes of the record; nothing was changed")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection from the pool, returned to it unless it broke. Translates foreign exceptions."""
        try:
            leased = await self.lease()
        except FOREIGN as error:
            raise _translated(error) from error
        broken = True
        try:
            yield leased.driver_connection
            broken = False
        except FOREIGN as error:
            broken = breaks_connection(error)
            raise _translated(error) from error
        except Exception:
            # An error of the work. The connection is good unless it is still inside a transaction.
            broken = False
            raise
        finally:
            self.give_back(leased, reusable=not broken and _is_reusable(leased.driver_connection))

    async def lease(self) -> PoolProxiedConnection:
        """Take a connection for `connection`, or to keep for long. Raises StoreUnavailable, foreign exceptions."""
        leased = await self._taken()
        for _ in range(self._size + 1):
            connection: Connection = leased.driver_connection
            if not connection.is_closed():
                await self._recognise(leased)
                break
            # The server went away or ended the session while the connection was idle in the pool.
            leased.invalidate()
            leased = await self._taken()
        self._leased += 1
        self._turns += 1
        return leased

    def give_back(self, leased: PoolProxiedConnection, *, reusable: bool) -> None:
        """End a lease. A connection that is not reusable is dropped without closing its session: the server may not
        answer."""
        self._leased -= 1
        self._turns += 1
        if reusable:
            leased.close()
        else:
            leased.invalidate()

    @property
    def state(self) -> PoolState:
        return PoolState(self.name, self.in_use, self._size, self._waiting, self._timeouts)

    async def _taken(self) -> PoolProxiedConnection:
        turns = self._turns
        self._waiting += 1
        try:
            return await self.engine.raw_connection()
        except PoolTimeout:
            self._timeouts += 1
            # A connection that changes hands is nobody's for a moment.
            if self._leased == self._size or self._turns != turns:
                raise
            # The pool is not busy. Its connections are still being made, as after a restart of the database.
            raise StoreUnavailable(detail=f"the {self.name} pool has no connection yet") from None
        finally:
            self._waiting -= 1

    @property
    def _size(self) -> int:
        return int(self.engine.pool.size())  # type: ignore[attr-defined]

    async def _recognise(self, leased: PoolProxiedConnection) -> None:
        """Check which database a new connection has reached. Raises DatabaseReplaced; foreign exceptions."""
        if self._anchor is None or _RECOGNISED in leased.info:
            return
        try:
            await self._anchor.ask(leased.driver_connection)
        except BaseException:
            leased.invalidate()
            raise
        leased.info[_RECOGNISED] = True

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BatonError):
            _log.error("a call on the %s pool failed", self.name, exc_info=error)


@asynccontextmanager
async def transaction(
    connection: Connection, *, lock_timeout_seconds: float | None = None, snapshot: bool = False
) -> AsyncIterator[None]:
    """BEGIN, and at the end COMMIT, or ROLLBACK after an exception. One round trip each.

    `snapshot`: a read-only transaction whose statements all see the same snapshot, that of the first of them.
    """
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else "BEGIN"
    if lock_timeout_seconds is not None:
        begin += f"; SET LOCAL lock_timeout = {int(lock_timeout_seconds * 1000)}"
    await connection.execute(begin)
    try:
        yield
    except BaseException as error:
        if not breaks_connection(error):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


def _is_reusable(connection: Connection) -> bool:
    return not (connection.is_closed() or connection.is_in_transaction())


def _translated(error: Exception) -> Exception:
    return translated(error) or error

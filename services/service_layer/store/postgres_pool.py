"""Connections and transactions: SQLAlchemy owns the pools, statements run on asyncpg's connection below.

A piece of work runs in a task of the store's own, which a cancelled caller does not stop: a cancel during COMMIT would
leave the caller with an error and the database with the row, and a connection inside a transaction in the pool.
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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.errors import BatonError, LockTimeout, Overloaded, StoreUnavailable
from libs.postgres import UnfitDatabase
from libs.store.connections import APPLY_POOL, CONTROL_POOL, default_request_pool, local_cores, per_process
from libs.store.transaction import StartAgain
from services.service_layer.store.postgres_errors import FOREIGN, breaks_connection, translated
from services.service_layer.store.postgres_identity import Anchor

T = TypeVar("T")
Connection: TypeAlias = Any
"""An `asyncpg.Connection`; asyncpg is not typed."""
Work = Callable[[Connection], Awaitable[T]]

_log = logging.getLogger(__name__)

_ATTEMPTS = 40
"""How often a piece of work starts again before its record counts as busy."""
_PAUSE_SECONDS = 0.002
_CONNECT_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_TASKS_PER_CONNECTION = 32
_RECOGNISED = "recognised"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many connections this process uses, and how long anything may take in them."""

    request_pool: int = field(default_factory=lambda: default_request_pool(local_cores()))
    """For calls of clients and handoffs."""
    apply_pool: int = APPLY_POOL
    """For the feed, the outbox and upkeep: a flood there leaves calls their connections."""
    control_pool: int = CONTROL_POOL
    """For status, copies and digests, which may look at every row: the feed goes on meanwhile."""
    pool_timeout_seconds: float = 1.0
    """After this wait for a connection a call is refused (Overloaded)."""
    statement_timeout_seconds: float = 5.0
    lock_timeout_seconds: float = 1.0
    """After this wait for a row it counts as busy (LockTimeout)."""
    idle_in_transaction_seconds: float = 2.0
    """After this the database ends a transaction whose process says nothing any more."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name}: {value!r} is not valid: more than 0 is needed")
        if self.lock_timeout_seconds >= self.statement_timeout_seconds:
            raise ValueError(
                f"lock_timeout_seconds: {self.lock_timeout_seconds!r} is not valid: less than"
                f" statement_timeout_seconds ({self.statement_timeout_seconds!r}) is needed, or it never fires"
            )

    @property
    def connections(self) -> int:
        """Of a process whose pools are full."""
        return per_process(self.request_pool, self.apply_pool, self.control_pool)


def normalised(dsn: str) -> str:
    """The dsn with SQLAlchemy's asyncpg scheme. Raises UnfitDatabase."""
    try:
        url = make_url(dsn)
    except ArgumentError:
        raise UnfitDatabase("database dsn: it is not valid: postgresql://user@host:port/database is needed") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UnfitDatabase(f"database dsn: {url.drivername}:// is not valid: postgresql:// is needed")
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def make_engine(dsn: str, size: int, settings: PoolSettings, **server_settings: str) -> AsyncEngine:
    """A pool of `size` connections to the primary.

    Hot statements find rows by index, all of them. A plan that was made while a table was small must not outlive that:
    so other plans are discouraged, instead of waiting for fresh statistics. `synchronous_commit` is set per session, so
    that a changed server default cannot weaken it. There is no ping before use: a closed connection is known here
    without one, and a call that meets a dying one may be tried again by its request_id.
    """

    def milliseconds(seconds: float) -> str:
        return str(int(seconds * 1000))

    return create_async_engine(
        normalised(dsn),
        pool_size=size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout_seconds,
        pool_use_lifo=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            # Longer than the server's own bound: it only fires when the server does not answer at all.
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
    """One pool, and the tasks that use it."""

    def __init__(self, name: str, engine: AsyncEngine, size: int, anchor: Anchor | None = None) -> None:
        """`anchor`: every new connection must reach the database that it knows; None: any will do."""
        self.name = name
        self.engine = engine
        self._anchor = anchor
        self._most_tasks = size * _TASKS_PER_CONNECTION
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Pool {self.name} tasks={len(self._tasks)} {self.engine.pool.status()}>"

    @property
    def in_use(self) -> int:
        """Connections that are with somebody now."""
        return int(self.engine.pool.checkedout())  # type: ignore[attr-defined]

    async def run(self, work: Work[T]) -> T:
        """Does the work on a connection, in a task of its own, and again when it says StartAgain.

        Raises Overloaded, LockTimeout, StoreUnavailable, DiskFull, and what the work raises.
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
                raise StoreUnavailable("the store was closed while the call was under way") from None
            raise

    async def close(self) -> None:
        """Waits for what is under way, then closes the connections. Bounded."""
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
            _log.warning("the %s pool was not closed in order: %r", self.name, error)

    async def _work(self, work: Work[T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                async with self.connection() as connection:
                    return await work(connection)
            except StartAgain:
                # With a growing pause, by chance, or those who lost together would meet again.
                await asyncio.sleep(random.random() * _PAUSE_SECONDS * min(attempt, 10))
        raise LockTimeout(f"the record was changed by others {_ATTEMPTS} times meanwhile; nothing was changed")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection from the pool; it goes back unless it broke. Foreign exceptions leave as ours."""
        try:
            leased = await self.lease()
        except FOREIGN as error:
            raise _ours(error) from error
        broken = True
        try:
            yield leased.driver_connection
            broken = False
        except FOREIGN as error:
            broken = breaks_connection(error)
            raise _ours(error) from error
        except Exception:
            # The work's own: it says nothing about the connection, unless that is inside a transaction still.
            broken = False
            raise
        finally:
            if broken or _is_dirty(leased.driver_connection):
                # Without a goodbye: the server may not be there to hear it.
                leased.invalidate()
            else:
                leased.close()

    async def lease(self) -> PoolProxiedConnection:
        """For `connection`, and for who keeps one for long. Raises foreign exceptions."""
        leased = await self.engine.raw_connection()
        for _ in range(self.engine.pool.size() + 1):  # type: ignore[attr-defined]
            connection: Connection = leased.driver_connection
            if not connection.is_closed():
                await self._recognise(leased)
                return leased
            # The server went away, or ended it, while it lay in the pool.
            leased.invalidate()
            leased = await self.engine.raw_connection()
        return leased

    async def _recognise(self, leased: PoolProxiedConnection) -> None:
        """Of a new connection: where has it come out? Raises DatabaseReplaced; foreign exceptions."""
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
    """BEGIN, and at the end COMMIT, or ROLLBACK after an exception. One round trip each. `snapshot`: for reads, which
    all see what was committed before the first of them began."""
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


def _is_dirty(connection: Connection) -> bool:
    return bool(connection.is_closed() or connection.is_in_transaction())


def _ours(error: Exception) -> Exception:
    return translated(error) or error

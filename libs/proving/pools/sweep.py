"""Measures calls per second and their latency by pool size, on a PostgreSQL that may be in use.

A fixed number of callers, each with one call after the other, share the connections. A caller without one waits, and
the wait counts. A call is that of a store: it reads a row by its key; a write then changes it in one statement, on the
condition that it is unchanged, together with an entry in a queue and one in a list of requests, and is on disk when it
is answered. Sizes take turns, so that other load on the machine affects all of them.

All objects are in one schema, which is dropped at the end, also after a failure or an interrupt; the next bench drops
the schema of a bench that was killed. One bench at a time runs in a database, and all waits have limits.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg

from libs.errors import BatonError
from libs.proving.pools.curve import Point, Turn
from libs.store.connections import ALLOWED

Connection: TypeAlias = Any
"""An `asyncpg.Connection`; asyncpg is not typed."""

SCHEMA = "baton_bench"
MARK = "Made by a bench of pools. Not in use when no bench runs: it may be dropped."
LOCK = 0x6261746F6E62656E  # one bigint in the database's space of advisory locks

LEFT_FREE = 3
"""Connections that a bench leaves to others."""
PAYLOAD = bytes(400)
WARM_UP_SECONDS = 0.5

_CONNECT_SECONDS = 5.0
_STATEMENT_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_SPARE_SECONDS = 30.0
_FOREIGN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
"""Errors of asyncpg; a TimeoutError is an OSError."""

_LOOK = f"""
SELECT split_part(current_setting('server_version'), ' ', 1) AS version, current_database() AS database,
       ({ALLOWED}) AS allowed,
       (SELECT sum(numbackends) FROM pg_stat_database)::integer AS in_use,
       inet_server_addr() IS NULL OR inet_server_addr() = inet_client_addr() AS here
"""
_FOUND = "SELECT obj_description(oid, 'pg_namespace') AS mark FROM pg_namespace WHERE nspname = $1"
_DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
_MAKE = f"""
CREATE SCHEMA {SCHEMA};
COMMENT ON SCHEMA {SCHEMA} IS '{MARK}';
CREATE TABLE {SCHEMA}.record (key text COLLATE "C" PRIMARY KEY, revision bigint NOT NULL, payload bytea NOT NULL)
  WITH (fillfactor = 50);
CREATE TABLE {SCHEMA}.served (key text COLLATE "C", request_id uuid, revision bigint NOT NULL, answer bytea,
  PRIMARY KEY (key, request_id));
CREATE TABLE {SCHEMA}.outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text, event bytea)
"""
_FILL = f"INSERT INTO {SCHEMA}.record SELECT 'sandboxes/' || n, 0, $2 FROM generate_series(1, $1::integer) n"
_EMPTY = f"TRUNCATE {SCHEMA}.served, {SCHEMA}.outbox"
_READ = f"SELECT revision, payload FROM {SCHEMA}.record WHERE key = $1"
_WRITE = f"""
WITH w AS (UPDATE {SCHEMA}.record SET revision = revision + 1, payload = $3
  WHERE key = $1 AND revision = $2 RETURNING 1),
s AS (INSERT INTO {SCHEMA}.served SELECT $1, $4::uuid, $2 + 1, $3 FROM w)
INSERT INTO {SCHEMA}.outbox (key, event) SELECT $1, $3 FROM w RETURNING id
"""


class BenchFailed(BatonError):
    """The pool could not be measured."""


@dataclass(frozen=True, slots=True)
class Server:
    """Facts about a database before the measurement."""

    version: str
    database: str
    allowed: int
    """Connections that this user may have."""
    in_use: int
    """Connections in use, without this query's own."""
    here: bool
    """Whether the server is on this machine."""

    @property
    def free(self) -> int:
        """Connections that a bench may take, beside the one that guards it."""
        return max(self.allowed - self.in_use - LEFT_FREE - 1, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    sizes: tuple[int, ...]
    callers: int = 64
    turn_seconds: float = 1.0
    turns: int = 3
    write_percent: int = 50
    records: int = 2000

    @property
    def seconds(self) -> float:
        """Duration of the measurement, without creating and dropping the schema."""
        return len(self.sizes) * self.turns * self.turn_seconds


Progress = Callable[[int, int], None]
"""Called after each turn with the number of finished turns and the total."""


async def look(dsn: str) -> Server:
    """Query the server, without changes. Raises BenchFailed."""
    async with AsyncExitStack() as stack:
        connection = await _connected(dsn, stack)
        found = await _translated(connection.fetchrow(_LOOK))
        return Server(found["version"], found["database"], found["allowed"], found["in_use"] - 1, found["here"])


async def sweep(dsn: str, plan: Plan, progress: Progress) -> list[Point]:
    """Measure each size in `plan.turns` turns. Raises BenchFailed."""
    async with AsyncExitStack() as stack:
        guard = await _connected(dsn, stack)
        await stack.enter_async_context(_schema(guard, plan))
        connections = [await _connected(dsn, stack) for _ in range(max(plan.sizes))]
        try:
            async with asyncio.timeout(plan.seconds * 2 + _SPARE_SECONDS):
                return await _measure(guard, connections, plan, progress)
        except TimeoutError:
            raise BenchFailed(
                f"the database did not keep up: {plan.seconds:g} s of turns took more than twice that"
            ) from None


async def _measure(guard: Connection, connections: list[Connection], plan: Plan, progress: Progress) -> list[Point]:
    found: dict[int, list[Turn]] = {size: [] for size in plan.sizes}
    await _translated(take_turn(connections, plan, WARM_UP_SECONDS))
    done = 0
    for turn in range(plan.turns):
        # Alternate the order, so that neither small nor large sizes always come first.
        for size in plan.sizes if turn % 2 == 0 else plan.sizes[::-1]:
            await _translated(guard.execute(_EMPTY))
            found[size].append(await _translated(take_turn(connections[:size], plan, plan.turn_seconds)))
            done += 1
            progress(done, plan.turns * len(plan.sizes))
    try:
        return [Point.of(size, turns) for size, turns in found.items()]
    except ValueError as error:
        raise BenchFailed(str(error)) from None


async def take_turn(connections: Sequence[Connection], plan: Plan, seconds: float) -> Turn:
    """Let the callers use these connections for so long. Started calls are finished."""
    # The caller that has waited longest gets the connection that was used last. With a queue of connections, a caller
    # that returns one and asks again at once would get it before the waiting ones.
    idle = list(connections)
    turn = asyncio.Semaphore(len(idle))
    milliseconds: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds

    async def caller() -> None:
        while (at := time.perf_counter()) < end:
            async with turn:
                connection = idle.pop()
                try:
                    await _call(connection, plan)
                finally:
                    idle.append(connection)
            milliseconds.append((time.perf_counter() - at) * 1000)

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(plan.callers):
                callers.create_task(caller())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    took = time.perf_counter() - began
    return Turn(took, milliseconds, (time.process_time() - cpu) / took)


async def _call(connection: Connection, plan: Plan) -> None:
    key = f"sandboxes/{random.randint(1, plan.records)}"
    writes = random.randrange(100) < plan.write_percent
    while True:
        found = await connection.fetchrow(_READ, key)
        if not writes or await connection.fetchrow(_WRITE, key, found["revision"], PAYLOAD, uuid4()) is not None:
            return


@asynccontextmanager
async def _schema(guard: Connection, plan: Plan) -> AsyncIterator[None]:
    """Schema of this bench, dropped afterwards. Raises BenchFailed if the schema belongs to another program."""
    if not await _translated(guard.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)):
        raise BenchFailed("another bench runs in this database: wait for its end")
    found = await _translated(guard.fetchrow(_FOUND, SCHEMA))
    if found is not None and found["mark"] != MARK:
        raise BenchFailed(f"schema {SCHEMA} is there and was not made by a bench: rename it, or name another database")
    try:
        await _translated(guard.execute(f"{_DROP}; {_MAKE}"))
        await _translated(guard.execute(_FILL, plan.records, PAYLOAD))
        yield
    finally:
        try:
            await guard.execute(_DROP)
        except _FOREIGN as error:
            raise BenchFailed(f"schema {SCHEMA} could not be dropped, drop it by hand: {error!r}") from error


async def _connected(dsn: str, stack: AsyncExitStack) -> Connection:
    """A connection with the store's settings, as far as they matter here; closed with the stack."""
    connection = await _translated(
        asyncpg.connect(
            dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            server_settings={
                "application_name": "baton bench",
                "synchronous_commit": "on",
                "statement_timeout": str(int(_STATEMENT_SECONDS * 1000)),
                "idle_in_transaction_session_timeout": str(int(_STATEMENT_SECONDS * 1000)),
                "jit": "off",
            },
        )
    )
    stack.push_async_callback(_close, connection)
    return connection


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except _FOREIGN:
        connection.terminate()


async def _translated(work: Any) -> Any:
    """The result of the work; foreign exceptions become BenchFailed."""
    try:
        return await work
    except asyncpg.InsufficientPrivilegeError as error:
        raise BenchFailed(f"{error}: the user needs the right to make a schema (GRANT CREATE ON DATABASE)") from None
    except _FOREIGN as error:
        raise BenchFailed(f"PostgreSQL: {error or type(error).__name__}") from None

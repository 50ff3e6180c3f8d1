"""Writes per second of each store through its port, against the same statements on the bare database.

The bare SQLite commits in groups of the store's maximum size. The bare PostgreSQL has one connection for each
concurrent write, up to the size of the store's pool. For both, all parameters and events are made before the clock
starts. So the difference is the store's cost of making them, its rules, its tasks and its threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from libs.clock import SystemClock
from libs.ownership.model import Answered, Changed, Found, Store
from libs.ownership.rules import decide_write
from libs.store.port import StorePorts
from libs.store.sqlite_schema import Layout
from services.service_layer.store import embedded, postgres
from services.simple_mcp import store as old
from services.simple_mcp.store.flat import LAYOUT as OLD_LAYOUT
from tests.bench.bare_postgres import BarePostgres
from tests.bench.bare_sqlite import BareSqlite
from tests.bench.measure import Figure, Round, Target, alternate
from tests.bench.prepared import Change, Changes, Write, Writes
from tests.bench.site import Site, records

RECORDS = 1000
IN_FLIGHT = (1, 32)
TARGET = Target(0.8, at_most=False, of_ratio=True)
GROUPED_TARGET = Target(0.6, at_most=False, of_ratio=True)
"""For many writes in flight on SQLite, whose bare statements run in one thread without an event loop beside it."""

BareWrite = Callable[[Sequence[Change], int], Awaitable[Round]]
"""Writes changes to a bare database; the second argument is the number of concurrent writes."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A store, and a second database of the same kind and content without a store."""

    ports: StorePorts
    bare: BareWrite
    bare_name: str


async def write_through(ports: StorePorts, writes: Sequence[Write], in_flight: int) -> Round:
    waiting = iter(writes)
    milliseconds: list[float] = []

    async def worker() -> None:
        for write in waiting:

            def decide(found: Found, write: Write = write) -> Changed | Answered:
                return decide_write(found, ports.store, write.call, write.change)

            at = time.perf_counter()
            await ports.records.write(write.call, decide)
            milliseconds.append((time.perf_counter() - at) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return Round(time.perf_counter() - began, milliseconds)


@asynccontextmanager
async def _old_sqlite(directory: Path, site: Site) -> AsyncIterator[Pair]:
    paths = [directory / "old-store.db", directory / "old-bare.db"]
    for path in paths:
        await asyncio.to_thread(old.initialise, path)
        async with old.open_store(path, SystemClock()) as store:
            await store.transfers.apply(records(RECORDS, Store.A))
    with closing(BareSqlite(paths[1], OLD_LAYOUT)) as bare:
        async with old.open_store(paths[0], SystemClock()) as store:
            yield Pair(store, bare.write, "bare sqlite3")


@asynccontextmanager
async def _new_sqlite(directory: Path, site: Site) -> AsyncIterator[Pair]:
    paths = [directory / "new-store.db", directory / "new-bare.db"]
    for path in paths:
        async with embedded.open_store(path, SystemClock()) as store:
            await store.transfers.apply(records(RECORDS, Store.B))
    layout: Layout = embedded.LAYOUT
    with closing(BareSqlite(paths[1], layout)) as bare:
        async with embedded.open_store(paths[0], SystemClock()) as store:
            yield Pair(store, bare.write, "bare sqlite3")


@asynccontextmanager
async def _postgres(directory: Path, site: Site) -> AsyncIterator[Pair]:
    databases = ("bench_store", "bench_bare")
    dsns = [await asyncio.to_thread(site.stack.postgres.create_database, name) for name in databases]
    options = postgres.PostgresOptions()
    async with postgres.open_store(dsns[1], options=options) as store:
        await store.transfers.apply(records(RECORDS, Store.B))
    async with (
        BarePostgres.open(dsns[1], options.pools.request_pool) as bare,
        postgres.open_store(dsns[0], options=options) as store,
    ):
        await store.transfers.apply(records(RECORDS, Store.B))
        yield Pair(store, bare.write, "bare asyncpg")


_PAIRS: dict[str, Callable[[Path, Site], AbstractAsyncContextManager[Pair]]] = {
    "SQLite, the old service's table": _old_sqlite,
    "SQLite, embedded": _new_sqlite,
    "PostgreSQL": _postgres,
}


async def measure(site: Site) -> list[Figure]:
    figures = []
    for name, opened in _PAIRS.items():
        async with AsyncExitStack() as stack:
            pair = await stack.enter_async_context(opened(site.directory, site))
            writes, changes = Writes(RECORDS), Changes(pair.ports.store, Writes(RECORDS))
            for in_flight in IN_FLIGHT:
                count = site.pick(400, 200) if in_flight == 1 else site.pick(2000, 800)
                one_round = partial(_round, pair, writes, changes, count, in_flight)
                contenders = {"store": partial(one_round, True), "bare": partial(one_round, False)}
                found = await alternate(site.pick(7, 3), contenders)
                figures.append(
                    Figure(
                        f"{name}: {in_flight} in flight",
                        "writes/s",
                        found["store"].per_second,
                        found["bare"].per_second,
                        pair.bare_name,
                        GROUPED_TARGET if in_flight > 1 and name.startswith("SQLite") else TARGET,
                    )
                )
    return figures


async def _round(
    pair: Pair, writes: Writes, changes: Changes, count: int, in_flight: int, through: bool, _: int
) -> Round:
    if through:
        return await write_through(pair.ports, writes.take(count), in_flight)
    return await pair.bare(changes.take(count), in_flight)

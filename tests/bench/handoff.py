"""The handoff of one record to the other store and back by the router, against one bare write at each database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from functools import partial

from libs.clock import SystemClock
from libs.ownership.errors import NotOwner
from libs.ownership.model import NEVER, Store
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.handoff import Handoffs, Moved
from services.router.flows.moving.transfer import Transfer
from services.router.flows.stores import StoreClient, open_store
from services.router.flows.traffic import Traffic
from services.service_layer.store import postgres
from services.simple_mcp import store as old
from services.simple_mcp.store.flat import LAYOUT
from tests.bench.bare_postgres import BarePostgres
from tests.bench.bare_sqlite import BareSqlite
from tests.bench.measure import Contender, Figure, Round, Target, alternate
from tests.bench.prepared import Changes, Writes
from tests.bench.site import SEED_RECORDS, Site, name_of, records

TARGET = Target(5.0)


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    count = site.pick(40, 25)
    async with AsyncExitStack() as stack:
        clients: dict[Store, StoreClient] = {}
        for access in world.stores:
            store = Store(access.store)
            clients[store] = await stack.enter_async_context(open_store(store, access.address, access.token.encode()))
        transfer = Transfer(clients)
        handoffs = Handoffs(transfer, BucketMoves(transfer), Traffic())
        two_writes = await _two_writes(site, stack)
        contenders: dict[str, Contender] = {
            "there": partial(_bring, handoffs, Store.B, count),
            "bare": partial(two_writes, count),
            "back": partial(_bring, handoffs, Store.A, count),
            "bare again": partial(two_writes, count),
        }
        # Without rotation, because a record can come back only after it has moved.
        found = await alternate(site.pick(8, 4), contenders, rotate=False)
    figures = []
    for name, way, bare in (("A to B", "there", "bare"), ("B to A", "back", "bare again")):
        mine, theirs = found[way], found[bare]
        baseline = "one bare write at each database"
        figures += [
            Figure(f"{name}: p50", "ms", mine.p50, theirs.p50, baseline, TARGET),
            Figure(f"{name}: p99", "ms", mine.p99, theirs.p99, baseline),
        ]
    return figures


async def _bring(handoffs: Handoffs, to: Store, count: int, number_of_round: int) -> Round:
    """Hand over the records of this round, one at a time."""
    milliseconds = []
    denied = NotOwner(to.other, NEVER, absent=False)
    began = time.perf_counter()
    for number in range(count):
        name = name_of(SEED_RECORDS + number_of_round * count + number)
        at = time.perf_counter()
        moved = await handoffs.bring(name, to, denied, create=False)
        milliseconds.append((time.perf_counter() - at) * 1000)
        if moved is not Moved.HERE:
            raise RuntimeError(f"{name} did not move to {to}: {moved}")
    return Round(time.perf_counter() - began, milliseconds)


async def _two_writes(site: Site, stack: AsyncExitStack) -> Callable[[int, int], Awaitable[Round]]:
    path = site.directory / "handoff-bare.db"
    await asyncio.to_thread(old.initialise, path)
    async with old.open_store(path, SystemClock()) as store:
        await store.transfers.apply(records(SEED_RECORDS, Store.A))
    dsn = await asyncio.to_thread(site.stack.postgres.create_database, "bench_handoff")
    async with postgres.open_store(dsn) as new:
        await new.transfers.apply(records(SEED_RECORDS, Store.B))
    sqlite = stack.enter_context(closing(BareSqlite(path, LAYOUT)))
    server = await stack.enter_async_context(BarePostgres.open(dsn, 1))
    changes = {store: Changes(store, Writes(SEED_RECORDS)) for store in Store}

    async def write(count: int, _: int) -> Round:
        at_a = await sqlite.write(changes[Store.A].take(count), 1)
        at_b = await server.write(changes[Store.B].take(count), 1)
        pairs = zip(at_a.milliseconds, at_b.milliseconds, strict=True)
        return Round(at_a.seconds + at_b.seconds, [one + other for one, other in pairs])

    return write

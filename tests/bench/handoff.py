"""The handoff of one record to the other store and back by the router, against one bare write at each database; and an
update whose record moves first, against an update of a record that is at its target already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from functools import partial
from uuid import uuid4

from libs.clock import SystemClock
from libs.ownership.errors import NotOwner
from libs.ownership.model import NEVER, Store, bucket_of
from libs.proving.trial.doors import CONTRACT
from libs.rpc import metadata
from libs.sandboxes.schema import METADATA, SCHEMAS
from services.router.core.plan import Target as Goal
from services.router.flows.calls.forward import ClientCall, Forward, ReadPolicy
from services.router.flows.calls.patience import Patience
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
from tests.bench.calls import UPDATE, update_request
from tests.bench.measure import Contender, Figure, Round, Rounds, Target, alternate
from tests.bench.prepared import Changes, Writes
from tests.bench.site import CALL_SECONDS, SEED_RECORDS, Site, name_of, records

TARGET = Target(3.0)


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
        updates = await _updates(site, _Updates(clients, handoffs), count)
    figures = []
    for name, way, bare in (("A to B", "there", "bare"), ("B to A", "back", "bare again")):
        mine, theirs = found[way], found[bare]
        baseline = "one bare write at each database"
        figures += [
            Figure(f"{name}: p50", "ms", mine.p50, theirs.p50, baseline, TARGET),
            Figure(f"{name}: p99", "ms", mine.p99, theirs.p99, baseline),
        ]
    for name, way, still in (("A to B", "there", "at B"), ("B to A", "back", "at A")):
        mine, theirs = updates[way], updates[still]
        baseline = f"the same {still}"
        figures += [
            Figure(f"update that moves {name}: p50", "ms", mine.p50, theirs.p50, baseline),
            Figure(f"update that moves {name}: p99", "ms", mine.p99, theirs.p99, baseline),
        ]
    return figures


class _Updates:
    """Updates by the part of a router that carries a call out."""

    def __init__(self, clients: Mapping[Store, StoreClient], handoffs: Handoffs) -> None:
        self._clock = SystemClock()
        traffic = Traffic()
        patience = Patience(traffic, 0.0)
        self._forward = Forward(clients, handoffs, traffic, self._clock, ReadPolicy(), patience)

    async def update(self, to: Store, first: int, count: int, number_of_round: int) -> Round:
        """Update the records of this round at a store, one at a time."""
        milliseconds = []
        began = time.perf_counter()
        for number in range(first + number_of_round * count, first + (number_of_round + 1) * count):
            at = time.perf_counter()
            answer = await self._forward.call(self._call(number), Goal(to, "bench"))
            milliseconds.append((time.perf_counter() - at) * 1000)
            if answer.store is not to:
                raise RuntimeError(f"{name_of(number)} was updated at {answer.store}")
        return Round(time.perf_counter() - began, milliseconds)

    def _call(self, number: int) -> ClientCall:
        name, now = name_of(number), self._clock.monotonic()
        ends_at = now + CALL_SECONDS
        extra = ((metadata.REQUEST_ID, str(uuid4())), (METADATA, str(SCHEMAS.newest)))
        method = CONTRACT.methods[UPDATE]
        return ClientCall(method, update_request(number), name, bucket_of(name), False, extra, ends_at, ends_at)


async def _updates(site: Site, updates: _Updates, count: int) -> dict[str, Rounds]:
    rounds = site.pick(8, 4)
    first = SEED_RECORDS + (rounds + 1) * count
    contenders: dict[str, Contender] = {
        "there": partial(updates.update, Store.B, first, count),
        "at B": partial(updates.update, Store.B, first, count),
        "back": partial(updates.update, Store.A, first, count),
        "at A": partial(updates.update, Store.A, first, count),
    }
    return await alternate(rounds, contenders, rotate=False)


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

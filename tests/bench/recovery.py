"""The recovery of B after it lost its database while it owned every record, against a bare batch upsert of the same
rows.

The time runs from the start of B's process on an empty database until B serves. In this time, A seizes every record,
which makes an event for each, and B is filled, compared with A and opened.
"""

from __future__ import annotations

import asyncio
import time

from libs.ownership.model import Store
from libs.proving.trial.walk import Walk
from services.router.flows.jobs.recover import BOUND_SECONDS
from services.service_layer.store.postgres import migrate
from tests.bench.bare_postgres import BarePostgres
from tests.bench.measure import Figure, Target
from tests.bench.site import Site, records

TARGET = Target(1000.0, at_most=False)
BATCH = 200
OVERRIDE = "a bench has no evidence"
PATIENCE_SECONDS = 200.0


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    postgres = site.stack.postgres
    count = site.records
    dsn = await asyncio.to_thread(postgres.create_database, "bench_recovery")
    await migrate(dsn)
    async with BarePostgres.open(dsn, 1) as server, Walk.open(world.controls, "bench", world.token) as walk:
        bare = count / await server.upsert(records(count, Store.B), BATCH)
        walk.patience_seconds = PATIENCE_SECONDS
        await walk.settled()
        await walk.backfill()
        for _ in range(2):
            await walk.unpassed_gates()
            await walk.advance(OVERRIDE)
        await walk.canary(100.0)
        await world.kill("b-1")
        name = world.servers.new_database.rpartition("/")[2]
        await asyncio.to_thread(postgres.drop_database, name)
        await asyncio.to_thread(postgres.create_database, name)
        began = time.perf_counter()
        await asyncio.to_thread(world.nodes["b-1"].process.start)
        await walk.job("recover", {"store": "B", "confirm": "service_layer"})
        seconds = time.perf_counter() - began
        await walk.rollback("OFF", "the bench has ended")
        await walk.lift_hold("the bench has ended")
    rate, hours = count / seconds, BOUND_SECONDS / 1e6
    return [
        Figure("B, empty, until it serves", "records/s", rate, bare, f"bare upsert, {BATCH} at once", TARGET),
        Figure("records recovered in 4 h", "million", rate * hours, bare * hours, "bare upsert in 4 h"),
    ]

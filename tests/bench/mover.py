"""The move of all records from A to B and back by the router's mover, against a bare batch upsert of the same rows.

The records are backfilled first, as in a real migration. The move includes the owners of the buckets. Each record is
released, adopted, put into an outbox, published, and read by the other store's feed.
"""

from __future__ import annotations

import asyncio
import statistics

from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from services.service_layer.store.postgres import migrate
from tests.bench.bare_postgres import BarePostgres
from tests.bench.measure import Figure, Target
from tests.bench.site import Site, records

TARGET = Target(5000.0, at_most=False)
BATCH = 200
OVERRIDE = "a bench has no evidence"
PATIENCE_SECONDS = 60.0


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    count = site.records
    rows = records(count, Store.B)
    dsn = await asyncio.to_thread(site.stack.postgres.create_database, "bench_mover")
    await migrate(dsn)
    bare: list[float] = []
    rates: dict[str, float] = {}
    async with (
        BarePostgres.open(dsn, 1) as server,
        Walk.open(world.controls, "bench", world.token) as walk,
        open_readers(world.stores) as (at_a, at_b),
    ):
        walk.patience_seconds = PATIENCE_SECONDS
        await walk.settled()
        await walk.backfill()
        await walk.unpassed_gates()
        await walk.advance(OVERRIDE)
        await walk.unpassed_gates()
        await walk.advance(OVERRIDE)
        bare.append(count / await server.upsert(rows, BATCH))
        for way, percent, source in (("A to B", 100.0, at_a), ("B to A", 0.0, at_b)):
            move = await walk.canary(percent)
            if left := await _owned(source):
                raise RuntimeError(f"{way}: {left} of {count} records did not move")
            rates[way] = count / move.seconds
            bare.append(count / await server.upsert(rows, BATCH))
        await walk.rollback("OFF", "the bench has ended")
        await walk.lift_hold("the bench has ended")
    baseline = statistics.median(bare)
    return [
        Figure(way, "records/s", rate, baseline, f"bare upsert, {BATCH} at once", TARGET) for way, rate in rates.items()
    ]


async def _owned(reader: Reader) -> int:
    found = await reader.ask(reader.stub.DigestBuckets, pb.DigestBucketsRequest())
    return sum(bucket.owned for bucket in found.buckets)

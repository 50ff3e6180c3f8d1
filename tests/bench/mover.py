"""The move of all records from A to B and back by the router's mover, against a bare batch upsert of the same rows.

The records are backfilled first, as in a real migration. The move includes the owners of the buckets, and the wait
until the router reports it as done. Clients go on writing a few records: their latencies during the moves are compared
with those of the same calls without a move.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.ownership.model import Store
from libs.ownership.wire import record_to_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from libs.rpc.channel import RawCallable
from services.service_layer.store.postgres import migrate
from tests.bench.bare_postgres import BarePostgres
from tests.bench.calls import SAYS, UPDATE, path_of, update_request
from tests.bench.measure import Figure, Target, percentile
from tests.bench.site import CALL_SECONDS, SEED_RECORDS, Site, records

TARGET = Target(0.45, at_most=False, of_ratio=True)
LATENCY_TARGET = Target(3.0, of_ratio=True)
WRITES_PER_SECOND = 20.0
BATCH = 200
OVERRIDE = "a bench has no evidence"
PATIENCE_SECONDS = 60.0


async def measure(site: Site) -> list[Figure]:
    world = await site.world()
    # So many that the waits around a move weigh little.
    count = max(site.records, site.many)
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
        for start in range(site.records, count, BATCH):
            more = [record_to_pb(one) for one in records(min(BATCH, count - start), Store.A, start)]
            await at_a.ask(at_a.stub.AdoptRecords, pb.AdoptRecordsRequest(records=more))
        await walk.backfill()
        await walk.unpassed_gates()
        await walk.advance(OVERRIDE)
        await walk.unpassed_gates()
        await walk.advance(OVERRIDE)
        bare.append(count / await server.upsert(rows, BATCH))
        call = (await site.channel(world.routers[0])).multi_callable(path_of(UPDATE))
        quiet, busy = _Clients(call), _Clients(call)
        async with quiet.writing():
            await asyncio.sleep(site.pick(10, 3))
        for way, percent, source in (("A to B", 100.0, at_a), ("B to A", 0.0, at_b)):
            async with busy.writing():
                move = await walk.canary(percent)
            if left := await _owned(source):
                raise RuntimeError(f"{way}: {left} of {count} records did not move")
            rates[way] = count / move.seconds
            bare.append(count / await server.upsert(rows, BATCH))
        await walk.rollback("OFF", "the bench has ended")
        await walk.lift_hold("the bench has ended")
    baseline = statistics.median(bare)
    figures = [
        Figure(way, "records/s", rate, baseline, f"bare upsert, {BATCH} at once", TARGET) for way, rate in rates.items()
    ]
    for share in (0.5, 0.99):
        name = f"update during the moves, p{share * 100:.0f}"
        during, without = (percentile(one.milliseconds, share) for one in (busy, quiet))
        figures.append(Figure(name, "ms", during, without, "without a move", LATENCY_TARGET))
    return figures


@dataclass
class _Clients:
    """Clients that write at a steady rate, whatever an answer takes."""

    call: RawCallable
    milliseconds: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(self._start(tasks))
            try:
                yield
            finally:
                starting.cancel()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        for number in itertools.count():
            tasks.create_task(self._write(update_request(number % SEED_RECORDS)))
            await asyncio.sleep(1 / WRITES_PER_SECOND)

    async def _write(self, request: bytes) -> None:
        began = time.perf_counter()
        await self.call(request, timeout=CALL_SECONDS, metadata=SAYS)
        self.milliseconds.append((time.perf_counter() - began) * 1000)


async def _owned(reader: Reader) -> int:
    found = await reader.ask(reader.stub.DigestBuckets, pb.DigestBucketsRequest())
    return sum(bucket.owned for bucket in found.buckets)

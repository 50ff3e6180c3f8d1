"""The backfill of all records of A to an empty B, and of equal stores in both directions, and the growth of the
processes.

The baseline is a bare batch upsert of the same rows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.proving.trial.stores import open_readers
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from services.router.flows.jobs.backfill import PAGE_RECORDS
from services.service_layer.store.postgres import migrate
from tests.bench.bare_postgres import BarePostgres
from tests.bench.measure import Figure, Memory, Target
from tests.bench.site import Site, records, seed_old_database

TARGET = Target(20_000.0, at_most=False)
FLAT = Target(200.0)
LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 1200.0
"""Timeout of a job. The bench itself has a shorter one."""

T = TypeVar("T")


async def measure(site: Site) -> list[Figure]:
    """Measure from the start of a migration: A has the old service's records, B is empty."""
    count = site.many
    rows = records(count, Store.B)
    dsn = await asyncio.to_thread(site.stack.postgres.create_database, "bench_backfill")
    await migrate(dsn)
    directory = site.directory / "backfill"
    await asyncio.to_thread(directory.mkdir)
    await seed_old_database(directory / "old.db", count)
    made = await asyncio.to_thread(World.real, directory / "world", site.stack, directory / "old.db")
    bare, rates, growth = [], {}, dict[str, float]()
    async with (
        BarePostgres.open(dsn, 1) as server,
        made.running() as world,
        Walk.open(world.controls, "bench", world.token) as walk,
        open_readers(world.stores) as readers,
    ):
        walk.patience_seconds = PATIENCE_SECONDS
        await walk.settled()
        bare.append(count / await server.upsert(rows, PAGE_RECORDS))
        for name, to in (("A to B", "B"), ("A to B, all there", "B"), ("B to A, all there", "A")):
            began = time.perf_counter()
            job, grown = await watched(world, walk.job("backfill", {"to": to}))
            rates[name] = count / (time.perf_counter() - began)
            growth = {process: max(size, growth.get(process, 0.0)) for process, size in grown.items()}
            if job.done != count or await _counts(readers) != [count, count]:
                raise RuntimeError(f"{name}: {job.done} of {count} records were copied")
        bare.append(count / await server.upsert(rows, PAGE_RECORDS))
    baseline = statistics.median(bare)
    upsert = f"bare upsert, {PAGE_RECORDS} at once"
    return [
        *(
            Figure(name, "records/s", rate, baseline, upsert, TARGET if name == "A to B" else None)
            for name, rate in rates.items()
        ),
        *(Figure(f"{process}: growth", "MB", size, FLAT.limit, "limit", FLAT) for process, size in growth.items()),
    ]


async def watched(world: World, work: Coroutine[Any, Any, T]) -> tuple[T, dict[str, float]]:
    """The result of the work, and the largest growth of each process meanwhile, in MB."""
    pids = {name: node.process.pid for name, node in world.nodes.items()}
    before = {name: Memory.of(pid).rss for name, pid in pids.items() if pid is not None}
    most = dict(before)
    task = asyncio.create_task(work)
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK_SECONDS)
        most = {name: max(size, Memory.of(pid).rss) for name, size in most.items() if (pid := pids[name]) is not None}
    return task.result(), {name: most[name] - size for name, size in before.items()}


async def _counts(readers: Any) -> list[int]:
    found = [await reader.ask(reader.stub.DigestBuckets, pb.DigestBucketsRequest()) for reader in readers]
    return [sum(bucket.records for bucket in digests.buckets) for digests in found]

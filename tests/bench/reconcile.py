"""The reconcile job on two equal stores, by stored and by recomputed digests, then with records lost at B; and growth.

The baseline is the bare digest statement at the slower store.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import asyncpg

from libs.clock import SystemClock
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from services.service_layer.store.postgres import open_store
from tests.bench.backfill import FLAT, PATIENCE_SECONDS, watched
from tests.bench.measure import Figure, Target
from tests.bench.site import Site, name_of, seed, seed_old_database

TARGET = Target(5.0)
LOST = 1000
BARE_B = "SELECT bucket, count(*), bit_xor(digest) FROM record GROUP BY bucket"
BARE_A = "SELECT bucket, digest FROM sandboxes"


async def measure(site: Site) -> list[Figure]:
    count = site.many
    directory = site.directory / "reconcile"
    await asyncio.to_thread(directory.mkdir)
    await seed_old_database(directory / "old.db", count)
    made = await asyncio.to_thread(World.real, directory / "world", site.stack, directory / "old.db")
    async with open_store(made.servers.new_database, SystemClock()) as store:
        await seed(store, count)
    seconds, growth = dict[str, float](), dict[str, float]()
    connection = await asyncpg.connect(made.servers.new_database)
    try:
        await connection.execute("VACUUM ANALYZE record")
        async with made.running() as world, Walk.open(world.controls, "bench", world.token) as walk:
            walk.patience_seconds = PATIENCE_SECONDS
            await walk.settled()
            bare = [await _bare_at_b(connection), await asyncio.to_thread(_bare_at_a, made.directory / "a.db")]
            lost = min(LOST, count // 10)
            for name, arguments in (("equal", {}), ("equal, deep", {"deep": "yes"}), (f"{lost} lost at B", {})):
                if "lost" in name:
                    async with connection.transaction():
                        await connection.execute("SET LOCAL baton.removing = 'record'")
                        await connection.execute(
                            "DELETE FROM record WHERE key = ANY($1)", [name_of(number) for number in range(lost)]
                        )
                began = time.perf_counter()
                job, grown = await watched(world, walk.job("reconcile", arguments))
                seconds[name] = time.perf_counter() - began
                growth = {process: max(size, growth.get(process, 0.0)) for process, size in grown.items()}
                report = json.loads(job.report)
                expected = lost if "lost" in name else 0
                if (report["different"], report["repaired"]) != (expected, expected):
                    raise RuntimeError(f"{name}: found {report['found']}, repaired {report['repaired']}")
    finally:
        await connection.close()
    return [
        *(
            Figure(name, "s", value, max(bare), "bare digests", TARGET if name == "equal" else None)
            for name, value in seconds.items()
        ),
        *(Figure(f"{process}: growth", "MB", size, FLAT.limit, "limit", FLAT) for process, size in growth.items()),
    ]


async def _bare_at_b(connection: asyncpg.Connection) -> float:
    began = time.perf_counter()
    await connection.fetch(BARE_B)
    return time.perf_counter() - began


def _bare_at_a(path: Path) -> float:
    sums = dict[int, int]()
    with closing(sqlite3.connect(path)) as connection:
        began = time.perf_counter()
        for bucket, digest in connection.execute(BARE_A):
            sums[bucket] = sums.get(bucket, 0) ^ digest
        return time.perf_counter() - began

"""The audit of A's records, with and without a sample at B's scratch store, and the growth of the processes.

The baseline is one thread that copies the same file with SQLite's backup and checks every record of the copy.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

from libs.clock import SystemClock
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from libs.sandboxes.audit import SandboxAudit
from libs.store.sqlite_schema import ROW, row_from
from services.simple_mcp.store.flat import LAYOUT
from tests.bench.backfill import FLAT, PATIENCE_SECONDS, watched
from tests.bench.measure import Figure
from tests.bench.site import Site, seed_old_database

READ = f"SELECT {ROW} FROM {LAYOUT.table} r ORDER BY r.key"


async def measure(site: Site) -> list[Figure]:
    count = site.many
    directory = site.directory / "audit"
    await asyncio.to_thread(directory.mkdir)
    await seed_old_database(directory / "old.db", count)
    made = await asyncio.to_thread(World.real, directory / "world", site.stack, directory / "old.db")
    bare, rates, growth = [], dict[str, float](), dict[str, float]()
    async with made.running() as world, Walk.open(world.controls, "bench", world.token) as walk:
        walk.patience_seconds = PATIENCE_SECONDS
        await walk.settled()
        file, copy = world.directory / "a.db", directory / "copy.db"
        bare.append(count / await asyncio.to_thread(_bare, file, copy))
        for sample in ("10", "0"):
            began = time.perf_counter()
            job, grown = await watched(world, walk.job("audit", {"sample": sample}))
            rates[f"sample of {sample} %"] = count / (time.perf_counter() - began)
            growth = {process: max(size, growth.get(process, 0.0)) for process, size in grown.items()}
            report = json.loads(job.report)
            if (report["records"], report["verdict"]) != (count, "CLEAN"):
                raise RuntimeError(f"{sample} %: {job.note}")
        bare.append(count / await asyncio.to_thread(_bare, file, copy))
    baseline = statistics.median(bare)
    return [
        *(Figure(name, "records/s", rate, baseline, "bare copy and check") for name, rate in rates.items()),
        *(Figure(f"{process}: growth", "MB", size, FLAT.limit, "limit", FLAT) for process, size in growth.items()),
    ]


def _bare(file: Path, copy: Path) -> float:
    """Seconds that a bare copy and check takes."""
    audit, now = SandboxAudit(), SystemClock().now()
    began = time.perf_counter()
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        for values in target.execute(READ):
            row = row_from(values)
            if row is None or audit.findings(row, now):
                raise RuntimeError(f"{values[0]} has findings")
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds

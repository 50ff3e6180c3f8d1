"""The first start of A on a file of the old program: the time to its first answer, calls meanwhile, and growth.

The baseline is the same process on a file with a few rows. The calls run while old rows are completed. The bench ends
long before the last row is completed, so its time does not depend on the number of rows.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc

from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.baton.replication.v1.replication_pb2_grpc import ReplicationServiceStub
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.process import Command, ServerProcess
from libs.rpc.channel import open_channel
from services.simple_mcp.store.flat import OLD_TABLE
from tests.bench.measure import Figure, Memory, Target, percentile
from tests.bench.site import Site

START = Target(2.0)
GROWTH = Target(64.0)
FEW = 10
CALLS_SECONDS = 20.0
_READY = re.compile(r"ready public=(\S+) internal=(\S+)")
_START_SECONDS = 60.0
_POLL_SECONDS = 0.01


async def measure(site: Site) -> list[Figure]:
    directory = site.directory / "first_start"
    await asyncio.to_thread(directory.mkdir)
    few, many = directory / "few.db", directory / "many.db"
    for path, count in ((few, FEW), (many, site.many)):
        await asyncio.to_thread(make_old_file, path, count)
    baseline, _, _, _, _ = await _start(few, FEW, 0.0)
    seconds, calls, done, worked, growth = await _start(many, site.many, CALLS_SECONDS)
    return [
        Figure(f"first answer, {site.many} rows", "s", seconds, baseline, f"{FEW} rows", START),
        Figure("read while rows are completed: P50", "ms", percentile(calls, 0.5), 0.0, ""),
        Figure("read while rows are completed: P99", "ms", percentile(calls, 0.99), 0.0, ""),
        Figure("rows completed beside the reads", "rows/s", done / worked if worked else 0.0, 0.0, ""),
        Figure("growth", "MB", growth, GROWTH.limit, "limit", GROWTH),
    ]


def make_old_file(path: Path, count: int) -> None:
    """Make a file with random ids, so that the order of rows is not the order of names."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(OLD_TABLE)
        connection.execute(
            "WITH RECURSIVE n (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value + 1 < ?)"
            " INSERT INTO sandboxes SELECT printf('%016x-%08d', value * 2654435761 % 4294967296 * 4294967296, value),"
            " 'account-' || (value % 1000), 'RUNNING', 'registry.example/agent:1.4', '[\"serve\"]',"
            ' \'{"PORT": "80"}\', 1.5, 512, 600, \'{"team": "red"}\', 1.6e9 + value, 1.6e9 + value FROM n',
            (count,),
        )


async def _start(path: Path, count: int, calls_seconds: float) -> tuple[float, list[float], int, float, float]:
    """Start A, read, and stop it. Returns the seconds to the first answer, the milliseconds of each later read, the
    rows completed meanwhile, the seconds of that, and the growth in MB."""
    with closing(sqlite3.connect(path)) as connection:
        names = [f"sandboxes/{name}" for (name,) in connection.execute("SELECT id FROM sandboxes LIMIT 100000")]
    chance = random.Random(3)
    began = time.perf_counter()
    with _running(path) as (process, log):
        public, internal = await _ready(process, log)
        async with open_channel(public) as channel, open_channel(internal) as inside:
            client, replication = SandboxServiceStub(channel.grpc), ReplicationServiceStub(inside.grpc)
            await _read(client, names[0])
            seconds = time.perf_counter() - began
            assert process.pid is not None
            before = most = Memory.of(process.pid).rss
            left = (await replication.GetStatus(rpb.GetStatusRequest())).unfilled_records
            calls: list[float] = []
            started = time.perf_counter()
            while time.perf_counter() - started < calls_seconds:
                called = time.perf_counter()
                await _read(client, chance.choice(names))
                calls.append(1000 * (time.perf_counter() - called))
                most = max(most, Memory.of(process.pid).rss)
            status = await replication.GetStatus(rpb.GetStatusRequest())
            if status.records != count:
                raise RuntimeError(f"A has {status.records} of {count} records")
            return seconds, calls, left - status.unfilled_records, time.perf_counter() - started, most - before


async def _read(client: SandboxServiceStub, name: str) -> None:
    try:
        await client.GetSandbox(pb.GetSandboxRequest(name=name), timeout=_START_SECONDS)  # type: ignore[misc]
    except grpc.aio.AioRpcError as error:
        raise RuntimeError(f"{name}: {error.code().name} {error.details()}") from error


@contextmanager
def _running(path: Path) -> Iterator[tuple[ServerProcess, Path]]:
    log = path.with_suffix(".log")
    env = {
        "PATH": "/usr/bin:/bin",
        "SIMPLE_MCP_DATABASE": str(path),
        "SIMPLE_MCP_EVENT_LOG": f"sqlite:///{path.with_suffix('.events')}",
        "SIMPLE_MCP_PUBLIC": "127.0.0.1:0",
        "SIMPLE_MCP_INTERNAL": "127.0.0.1:0",
    }
    process = ServerProcess(
        Command("simple_mcp", [sys.executable, "-m", "services.simple_mcp"], log, PROJECT_ROOT, env)
    )
    process.start()
    try:
        yield process, log
    finally:
        process.kill()


async def _ready(process: ServerProcess, log: Path) -> tuple[str, str]:
    """The public and the internal address, once A is ready."""
    async with asyncio.timeout(_START_SECONDS):
        while True:
            if found := _READY.search(await asyncio.to_thread(log.read_text)):
                return found[1], found[2]
            if not process.running:
                raise process.failure("has ended before it was ready")
            await asyncio.sleep(_POLL_SECONDS)

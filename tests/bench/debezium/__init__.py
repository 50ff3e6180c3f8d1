"""Baton's copy and lag beside those of Debezium, the usual way to keep one database's table in another.

Debezium reads a PostgreSQL table through logical replication and publishes each row to the bench's Kafka; its JDBC sink
writes the rows to a table of another database on the same server. Both run in one Kafka Connect worker. The records are
as large as Baton's, and the lag is measured as Baton's: from the change to the moment at which a query of the target
shows it. A first round, in which the worker's code is compiled, does not count. Debezium has fewer duties: it knows no
owner, checks no version, and carries no served requests.

The jars (about 90, 100 MB) come from Maven Central at the first run.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from libs.proving.servers import locate
from libs.proving.servers.errors import ServersError
from libs.proving.servers.ports import free_port
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.process import Command, ServerProcess
from tests.bench import backfill, lag
from tests.bench.measure import Figure, Round, percentile
from tests.bench.site import Site, name_of, payload_of

JARS = locate.PROJECT_ROOT / "build" / "debezium" / "jars"
POM = Path(__file__).parent / "pom.xml"
MAVEN_SECONDS = 900.0
COPY_SECONDS = 600.0
LATE_SECONDS = 60.0
POLL_SECONDS = 0.004
COUNT_SECONDS = 0.05
BATCH_ROWS = 1000
NAMES = 400
SAMPLE = 4
TABLE = "CREATE TABLE sandbox (key text PRIMARY KEY, written double precision NOT NULL, payload bytea NOT NULL)"
PEER = "Debezium"
TOPIC = "debezium.public.sandbox"


async def measure(site: Site) -> list[Figure]:
    await asyncio.to_thread(_get_jars)
    ours = {figure.name: figure for figure in (*await lag.measure(site), *await backfill.measure(site))}
    rate = ours["maximum rate of writes through the router"].baseline
    async with _peer(site) as peer:
        copied = await peer.copy(site.many)
        await peer.lag(rate, site.pick(10, 4))
        found = await peer.lag(rate, site.pick(20, 6))
    p50, p99 = ours["lag A to B: p50"], ours["lag A to B: p99"]
    return [
        Figure("copy of all records", "records/s", ours["A to B"].value, copied, PEER),
        Figure("rate of writes for the lag", "writes/s", rate, len(found.milliseconds) * SAMPLE / found.seconds, PEER),
        Figure("lag A to B: p50", "ms", p50.value, percentile(found.milliseconds, 0.5), PEER),
        Figure("lag A to B: p99", "ms", p99.value, percentile(found.milliseconds, 0.99), PEER),
    ]


def _get_jars() -> None:
    """Raises ServersError."""
    if any(JARS.glob("debezium-connector-jdbc-*.jar")):
        return
    arguments = ["-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    try:
        subprocess.run([locate.maven(), *arguments], check=True, timeout=MAVEN_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.SubprocessError as error:
        raise ServersError(f"Debezium's jars did not come from Maven Central: {error}") from None


@dataclass(frozen=True, slots=True)
class _Peer:
    source: asyncpg.Pool
    target: asyncpg.Pool
    worker: ServerProcess

    async def copy(self, count: int) -> float:
        """Rows per second of the first copy, from its first rows at the target on: the worker starts for seconds."""
        rows = [(name_of(number), time.time(), payload_of(number)) for number in range(count)]
        await self.source.copy_records_to_table("sandbox", records=rows)
        await asyncio.to_thread(self.worker.start)
        first = began = 0.0
        async with asyncio.timeout(COPY_SECONDS):
            while (found := await self.target.fetchval("SELECT count(*) FROM sandbox")) < count:
                self._check()
                if found and not began:
                    first, began = found, time.perf_counter()
                await asyncio.sleep(COUNT_SECONDS)
        if not began:
            raise RuntimeError(f"{count} records are too few: all came at once")
        return float((count - first) / (time.perf_counter() - began))

    async def lag(self, rate: float, seconds: float) -> Round:
        """Change rows at this rate, and follow one of SAMPLE until the target shows it."""
        waiting: dict[str, float] = {}
        milliseconds: list[float] = []
        ended = asyncio.Event()

        async def write(number: int) -> None:
            key = name_of(number % NAMES)
            made = await self.source.fetchval(
                "UPDATE sandbox SET written = extract(epoch FROM clock_timestamp()) WHERE key = $1 RETURNING written",
                key,
            )
            if number % SAMPLE == 0:
                waiting[key] = made

        async def follow() -> None:
            late = 0.0
            while waiting or not ended.is_set():
                self._check()
                if ended.is_set():
                    late = late or time.monotonic() + LATE_SECONDS
                    if time.monotonic() > late:
                        raise TimeoutError(f"{len(waiting)} changes are missing after {LATE_SECONDS:g} s")
                asked = dict(waiting)
                rows = await self.target.fetch("SELECT key, written FROM sandbox WHERE key = ANY($1)", list(asked))
                now = time.time()
                for key, written in rows:
                    if written >= asked[key]:
                        milliseconds.append((now - asked[key]) * 1000)
                        if waiting[key] == asked[key]:
                            del waiting[key]
                await asyncio.sleep(POLL_SECONDS)

        began = time.perf_counter()
        following = asyncio.create_task(follow())
        try:
            await lag.at_rate(rate, seconds, write)
            took = time.perf_counter() - began
        finally:
            ended.set()
            await following
        return Round(took, milliseconds)

    def _check(self) -> None:
        if not self.worker.running:
            raise self.worker.failure("has ended")


@asynccontextmanager
async def _peer(site: Site) -> AsyncIterator[_Peer]:
    directory = site.directory / "debezium"
    directory.mkdir()
    directory.chmod(0o755)
    server = Postgres(directory / "postgres")
    (directory / "postgres").mkdir()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, server.kill)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.execute, "ALTER SYSTEM SET wal_level = 'logical'")
        await asyncio.to_thread(server.restart)
        source, target = [await stack.enter_async_context(_table(server, name)) for name in ("source", "target")]
        await site.stack.kafka.create_topic(TOPIC, lag.PARTITIONS)
        worker = _worker(directory, site.stack.kafka.bootstrap, server.port)
        stack.push_async_callback(asyncio.to_thread, worker.kill)
        yield _Peer(source, target, worker)


@asynccontextmanager
async def _table(server: Postgres, database: str) -> AsyncIterator[asyncpg.Pool]:
    dsn = await asyncio.to_thread(server.create_database, database)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=8) as pool:
        await pool.execute(TABLE)
        yield pool


def _worker(directory: Path, bootstrap: str, port: int) -> ServerProcess:
    converter = "org.apache.kafka.connect.json.JsonConverter"
    files = {
        "worker": {
            "bootstrap.servers": bootstrap,
            "listeners": f"http://127.0.0.1:{free_port()}",
            "key.converter": converter,
            "value.converter": converter,
            "offset.storage.file.filename": directory / "offsets",
            "plugin.discovery": "service_load",
            "connector.client.config.override.policy": "All",
        },
        "source": {
            "name": "source",
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": "127.0.0.1",
            "database.port": port,
            "database.user": "postgres",
            "database.password": "unused",
            "database.dbname": "source",
            "topic.prefix": "debezium",
            "plugin.name": "pgoutput",
            "table.include.list": "public.sandbox",
            "tombstones.on.delete": "false",
            # The default waits up to half a second for changes.
            "poll.interval.ms": 5,
        },
        "sink": {
            "name": "sink",
            "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
            "topics": TOPIC,
            "connection.url": f"jdbc:postgresql://127.0.0.1:{port}/target?reWriteBatchedInserts=true",
            "connection.username": "postgres",
            "connection.password": "unused",
            "insert.mode": "upsert",
            "primary.key.mode": "record_key",
            "schema.evolution": "none",
            "collection.name.format": "sandbox",
            "batch.size": BATCH_ROWS,
            "consumer.override.max.poll.records": BATCH_ROWS,
        },
    }
    paths = [_write(directory / f"{name}.properties", settings) for name, settings in files.items()]
    classes = f"{JARS}/*:{locate.kafka_jars()}/*"
    argv: list[str | Path] = [
        locate.java(),
        "-Xmx1g",
        f"-Dlog4j2.configurationFile={locate.KAFKA_DEPLOY / 'log4j2.xml'}",
        "-cp",
        classes,
        "org.apache.kafka.connect.cli.ConnectStandalone",
        *paths,
    ]
    return ServerProcess(Command("debezium", argv, directory / "debezium.log", directory))


def _write(path: Path, settings: Mapping[str, Any]) -> Path:
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return path

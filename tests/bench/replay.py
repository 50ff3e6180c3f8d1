"""The replay of a whole topic to a B that lost all rows, to a B that has all rows, and as a preview; and growth.

The baseline is a plain consumer that reads the same topic.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from libs.eventlog.address import LogAddress, open_event_log
from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.port import Event
from libs.ownership.model import Record, Store
from libs.ownership.wire import event_of
from libs.pb.baton.replication.v1 import replication_pb2
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from tests.bench.backfill import FLAT, PATIENCE_SECONDS, TARGET, watched
from tests.bench.measure import Figure
from tests.bench.site import Site, records, seed_old_database
from tests.waiting import eventually

APPEND_EVENTS = 2000


async def measure(site: Site) -> list[Figure]:
    count = site.many
    directory = site.directory / "replay"
    await asyncio.to_thread(directory.mkdir)
    await seed_old_database(directory / "old.db", count)
    world = await asyncio.to_thread(World.real, directory / "world", site.stack, directory / "old.db")
    bare, rates, growth = [], {}, dict[str, float]()
    async with (
        world.running(),
        Walk.open(world.controls, "bench", world.token) as walk,
        open_readers(world.stores) as (_, at_b),
    ):
        walk.patience_seconds = PATIENCE_SECONDS
        await walk.settled()
        await _fill(world.servers.event_log, records(count, Store.A))
        await _until(at_b, count)
        bare.append(count / await _consume(world.servers.event_log))
        await _lose_rows(world.servers.new_database)
        for name, dry_run, applied in (("all lost", "no", count), ("all known", "no", 0), ("preview", "yes", 0)):
            began = time.perf_counter()
            arguments = {"to": "B", "start": "start", "dry_run": dry_run}
            job, grown = await watched(world, walk.job("replay", arguments))
            rates[name] = job.done / (time.perf_counter() - began)
            growth = {process: max(size, growth.get(process, 0.0)) for process, size in grown.items()}
            report = json.loads(job.report)
            if (report["applied"], report["known"]) != (applied, count - applied):
                raise RuntimeError(f"{name}: {job.note}")
        await _until(at_b, count)
        bare.append(count / await _consume(world.servers.event_log))
    baseline = statistics.median(bare)
    return [
        *(
            Figure(name, "events/s", rate, baseline, "plain consumer", TARGET if name == "all lost" else None)
            for name, rate in rates.items()
        ),
        *(Figure(f"{process}: growth", "MB", size, FLAT.limit, "limit", FLAT) for process, size in growth.items()),
    ]


async def _fill(address: LogAddress, made: list[Record]) -> None:
    """Publish the first write of each record, as A's relay does."""
    headers = HeaderWriter(Store.A.value, "baton.record.v1")
    async with open_event_log(address) as log:
        for start in range(0, len(made), APPEND_EVENTS):
            some = made[start : start + APPEND_EVENTS]
            await log.append(
                [
                    Event(one.row.key, event_of(one), headers.write(one.row.key, one.row.version, one.made_seconds))
                    for one in some
                ]
            )


async def _until(reader: Reader, count: int) -> None:
    """Wait until the store has this many records."""
    await eventually(lambda: _has(reader, count), PATIENCE_SECONDS)


async def _has(reader: Reader, count: int) -> bool:
    found = await reader.ask(reader.stub.DigestBuckets, replication_pb2.DigestBucketsRequest())
    return bool(sum(bucket.records for bucket in found.buckets) == count)


async def _lose_rows(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN; SET LOCAL baton.removing = 'record'; DELETE FROM record; COMMIT")
    finally:
        await connection.close()


async def _consume(address: LogAddress) -> float:
    """Read every message of the topic with aiokafka's consumer and discard it. Returns seconds."""
    bootstrap, _, topic = address.url.removeprefix("kafka://").partition("/")
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(address.partitions)]
        began = time.perf_counter()
        consumer.assign(partitions)
        left = dict(await consumer.end_offsets(partitions))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any(left.values()):
                for partition, messages in (await consumer.getmany(timeout_ms=1000, max_records=1000)).items():
                    if messages[-1].offset + 1 >= left[partition]:
                        left[partition] = 0
        return time.perf_counter() - began
    finally:
        await consumer.stop()

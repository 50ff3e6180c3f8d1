"""A backfill on real processes, whose routers and stores are killed while it runs."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from libs.pb.baton.replication.v1 import replication_pb2
from libs.pb.baton.replication.v1.replication_pb2 import DigestBucketsResponse
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from tests.fixtures.make_old_database import TABLE

RECORDS = 900
RATE = 100.0
"""Records per second: so that there is a middle to be killed in."""


def old_database(path: Path) -> Path:
    row = ("acme", "RUNNING", "debian:12-slim", '["true"]', "{}", 1.0, 512, 60, "{}", 1.4e9, 1.4e9)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(TABLE)
        rows = [(f"r-{number:05d}", *row) for number in range(RECORDS)]
        connection.executemany(f"INSERT INTO sandboxes VALUES ({', '.join('?' * 12)})", rows)
    return path


async def digests(reader: Reader) -> list[DigestBucketsResponse.Bucket]:
    """Digests by bucket, without the number of owned records."""
    found = await reader.ask(reader.stub.DigestBuckets, replication_pb2.DigestBucketsRequest())
    return [DigestBucketsResponse.Bucket(bucket=b.bucket, records=b.records, digest=b.digest) for b in found.buckets]


async def test_a_backfill_that_is_killed_at_random_goes_on_at_its_row_and_ends_with_the_same_result(
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    world = World.embedded(tmp_path / "world", old_database(tmp_path / "old.db"))
    async with (
        world.running(),
        Walk.open(world.controls, "acceptance", world.token) as walk,
        open_readers(world.stores) as readers,
    ):
        job = await walk.start_job("backfill", {"to": "B"}, RATE)

        async def done() -> int:
            return (await walk.look_at_job(job.id)).done

        in_its_middle = 0
        for victim in ("router-1", "a", "b-1", "router-1"):
            reached = min(RECORDS, await done() + chance.randint(1, 100))
            while (before := await done()) < reached:
                pass
            in_its_middle += before < RECORDS
            await world.kill(victim)
            await world.start(victim)
            assert await done() >= before, "it goes on where it was written down"
        assert in_its_middle >= 1
        await walk.tune_job(job.id, 0.0)
        ended = await walk.end_of_job(job.id)
        assert ended.done == RECORDS, "each row counts once, however often it was copied"
        at_a, at_b = [await digests(reader) for reader in readers]
        assert at_a == at_b
        assert sum(bucket.records for bucket in at_b) == RECORDS

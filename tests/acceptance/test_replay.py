"""A replay on real processes, whose routers and stores are killed while it runs, mends a store that has lost rows."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from libs.pb.sandbox.v1 import sandbox_service_pb2 as spb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.trial.stores import Reader, open_readers
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from libs.rpc.channel import open_channel
from tests.acceptance.test_jobs import digests
from tests.waiting import eventually

RECORDS = 200
RATE = 60.0
"""Events per second: so that there is a middle to be killed in."""


async def make_records(address: str) -> None:
    async with open_channel(address) as channel:
        stub = SandboxServiceStub(channel.grpc)
        turn = asyncio.Semaphore(16)

        async def make(number: int) -> None:
            sandbox = Sandbox(account="acme", spec=SandboxSpec(image="debian:12"))
            request = spb.CreateSandboxRequest(sandbox_id=f"r-{number}", sandbox=sandbox, request_id=str(uuid4()))
            async with turn:
                await stub.CreateSandbox(request, timeout=10)

        await asyncio.gather(*(make(number) for number in range(RECORDS)))


def lose_rows(path: Path) -> int:
    """With the mark of a removal, so that their counts go too: a store that misses counted rows does not serve."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE removal SET of_table = 'record'")
        lost = database.execute("DELETE FROM record").rowcount
        database.execute("UPDATE removal SET of_table = ''")
    return lost


async def same(readers: Sequence[Reader]) -> bool:
    at_a, at_b = [await digests(reader) for reader in readers]
    return at_a == at_b and sum(bucket.records for bucket in at_b) == RECORDS


async def test_a_replay_that_is_killed_at_random_brings_back_every_row_that_a_store_has_lost(tmp_path: Path) -> None:
    chance = random.Random(3)
    world = World.embedded(tmp_path / "world")
    async with (
        world.running(),
        Walk.open(world.controls, "acceptance", world.token) as walk,
        open_readers(world.stores) as readers,
    ):
        await make_records(world.routers[0])
        await eventually(lambda: same(readers), 30.0)
        await world.kill("b-1")
        assert lose_rows(world.directory / "b.db") == RECORDS
        await world.start("b-1")
        job = await walk.start_job("replay", {"to": "B", "start": "start"}, RATE)
        in_its_middle = 0
        for victim in ("router-1", "b-1"):
            reached = (await walk.look_at_job(job.id)).done + chance.randint(1, 40)
            while (before := await walk.look_at_job(job.id)).done < min(reached, RECORDS):
                pass
            in_its_middle += before.done < RECORDS
            await world.kill(victim)
            await world.start(victim)
            assert (await walk.look_at_job(job.id)).done >= before.done, "it goes on where it was written down"
        assert in_its_middle >= 1
        await walk.tune_job(job.id, 0.0)
        ended = await walk.end_of_job(job.id)
        report = json.loads(ended.report)
        assert ended.done == ended.total >= RECORDS
        assert report["applied"] + report["known"] == RECORDS and report["unreadable"] == 0
        assert await same(readers)

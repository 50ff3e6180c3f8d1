"""The promise, for a store that loses its disk: every write that was acknowledged when it was in the log is there.

Each test damages a store's database in the middle of load, starts the store on the damaged files, asserts that
the store detects the damage and serves nothing, recovers it with the operator's command, and compares the stores with
the answers that the clients received.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from libs.eventlog.address import open_event_log
from libs.eventlog.port import EventLog
from libs.ownership.model import BUCKETS
from libs.pb.baton.replication.v1 import recovery_pb2 as pb
from libs.pb.baton.replication.v1.recovery_pb2_grpc import RecoveryServiceStub
from libs.proving.history.history import READS, Outcome
from libs.proving.servers import locate
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack, server_directory
from libs.proving.trial.evidence import Evidence, gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import Reader, StoreAccess, open_readers, wait_until_quiet
from libs.proving.trial.verdict import judge
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from tests.fixtures.make_old_database import FILE
from tests.storms import sized
from tests.waiting import eventually

WAIT_SECONDS = 60.0
SETTINGS = {"ack_logged": "all", "rollback_automatic": "false"}
"""Answers come when the event is in the log: so nothing that was answered may be lost. To be away for long is a reason
to be left; here a store has to come back to its half."""
LEAST_CALLS = 300
RESTARTS = sized(short=6, full=50)
REASON = "an acceptance run"
PLAN = LoadPlan(
    clients=6, calls_per_second=sized(short=60, full=90), deadline_seconds=0.5, made_names=12, fresh_share=0.3, seed=11
)


@dataclass
class Site:
    """A running world under load, half of the buckets at B."""

    world: World
    walk: Walk
    readers: list[Reader]
    log: EventLog
    load: Load

    async def standing(self, store: str) -> pb.GetStandingResponse:
        access = next(one for one in self.world.stores if one.store == store)
        return await standing_of(access)

    async def some_writes(self) -> None:
        """Load goes on for a while: some hundred events more."""
        before = sum(end for _, end in (await self.log.ends()).values())

        async def more() -> bool:
            return sum(end for _, end in (await self.log.ends()).values()) > before + 60

        await eventually(more, WAIT_SECONDS)

    async def is_fenced(self, store: str, process: str) -> str:
        """The process runs, and says that it does not serve. Returns why."""

        async def gone() -> str:
            assert self.world.nodes[process].process.running, f"{process} has ended"
            try:
                return (await self.standing(store)).fence_reason
            except grpc.aio.AioRpcError:
                return ""

        reason = await eventually(gone, WAIT_SECONDS)
        assert not (await self.standing(store)).serving
        return reason

    async def start_fenced(self, store: str, process: str) -> str:
        """Start a process on the remains of its database. Returns why it does not serve."""
        await asyncio.to_thread(self.world.nodes[process].process.start)
        return await self.is_fenced(store, process)

    async def recover(self, store: str, name: str) -> None:
        await self.walk.job("recover", {"store": store, "confirm": name})
        assert (await self.standing(store)).serving


async def standing_of(access: StoreAccess) -> pb.GetStandingResponse:
    async with open_channel(access.address) as channel:
        stub = RecoveryServiceStub(channel.grpc)
        token = grpc.aio.Metadata((metadata.TOKEN, access.token))
        return await stub.GetStanding(pb.GetStandingRequest(), timeout=2.0, metadata=token)


@asynccontextmanager
async def half_moved(world: World, directory: Path) -> AsyncIterator[Site]:
    """Run load during the block; at its end compare both stores with the clients' answers."""
    load = Load(PLAN, world.routers, directory / "history")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.running())
        walk = await stack.enter_async_context(Walk.open(world.controls, "acceptance", world.token))
        readers = await stack.enter_async_context(open_readers(world.stores))
        log = await stack.enter_async_context(open_event_log(world.servers.event_log))
        walk.patience_seconds = 90.0
        walk.counts_records = False
        before = await readers[0].export()
        await walk.backfill()
        async with load.running():
            for _ in range(2):
                await walk.advance(REASON)
            await walk.canary(50)
            site = Site(world, walk, readers, log, load)
            await site.some_writes()
            yield site
            await site.some_writes()
        await walk.settled()
        await wait_until_quiet(readers, log, WAIT_SECONDS)
        evidence = await gather(load.calls(), readers, log, before)
        evidence.save(load.directory)
    result = judge(without_what_went_with_the_disk(evidence))
    assert load.stats.attempts >= LEAST_CALLS, "too few calls to show anything"
    assert result.ok, "\n".join(result.problems)


def without_what_went_with_the_disk(evidence: Evidence) -> Evidence:
    """Evidence without strict reads of writes that were lost with the disk.

    A strict read may show a write that has committed, is not in the log yet, and was never acknowledged. The write is
    lost with the disk, and its retry is executed again. Such a read is left out, also one that found the record
    deleted. Writes and refusals of writes stay.
    """
    known = {(event.name, event.version) for event in evidence.events}
    known |= {(held.name, held.written) for held in evidence.before}
    done = (call for call in evidence.calls if call.outcome is Outcome.OK and call.method not in READS)
    known |= {(call.key, call.revision) for call in done if call.revision is not None}
    calls = [
        call
        for call in evidence.calls
        if call.method not in READS or call.revision is None or (call.key, call.revision) in known
    ]
    return replace(evidence, calls=tuple(calls))


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may take apart."""
    with server_directory() as directory:
        server = Postgres(directory / "postgres")
        server.start()
        try:
            yield server
        finally:
            server.kill()


def put_back(directory: Path) -> None:
    """Put the old copy in the place of A's file and of SQLite's other files."""
    for file in directory.glob("a.db*"):
        file.unlink()
    shutil.copyfile(directory / "old-a.db", directory / "a.db")


def burn(directory: Path) -> None:
    for file in directory.glob("b.db*"):
        file.unlink()


def embedded(directory: Path) -> World:
    return World.embedded(directory, FILE, Size(router_settings=(SETTINGS,)))


async def test_an_old_copy_of_a_s_file_is_recognised_and_recovered(tmp_path: Path) -> None:
    async with half_moved(embedded(tmp_path), tmp_path) as site:
        await site.world.stop("a")
        shutil.copyfile(tmp_path / "a.db", tmp_path / "old-a.db")
        await site.world.start("a")
        await site.some_writes()
        await site.world.kill("a")
        await asyncio.to_thread(put_back, tmp_path)
        reason = await site.start_fenced("A", "a")
        assert "which this store made" in reason or "later state" in reason
        await site.recover("A", "simple_mcp")


async def test_a_store_whose_disk_burns_is_seized_from_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    async with half_moved(embedded(tmp_path), tmp_path) as site:
        await site.world.kill("b-1")
        await asyncio.to_thread(burn, tmp_path)
        job = await site.walk.job("seize", {"store": "B", "confirm": "service_layer"})
        assert "buckets seized" in job.note
        owned = await site.readers[0].bucket_owners()
        assert set(owned.values()) == {"A"}
        await site.some_writes()
        assert "another database" in await site.start_fenced("B", "b-1")
        await site.recover("B", "service_layer")


async def test_each_way_in_which_a_postgresql_goes_back_is_recognised_and_recovered(
    tmp_path: Path, kafka: Kafka, own_postgres: Postgres, redis_server: Redis
) -> None:
    stack = Stack(kafka, own_postgres, redis_server)
    world = World.real(tmp_path, stack, FILE, Size(router_settings=(SETTINGS,)))
    database = world.servers.new_database.rpartition("/")[2]
    async with half_moved(world, tmp_path) as site:
        # A dump, taken while the load goes on, and restored.
        file = tmp_path / "backup"
        await asyncio.to_thread(dump, own_postgres, database, file)
        await site.some_writes()
        await world.kill("b-1")
        await asyncio.to_thread(emptied, own_postgres, database)
        await asyncio.to_thread(restore, own_postgres, database, file)
        assert "it was restored or moved" in await site.start_fenced("B", "b-1")
        await site.recover("B", "service_layer")
        await walk_on(site)

        # A copy of the data directory, put back under a process that goes on.
        data = own_postgres.directory / "data"
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.to_thread(copied, data, data.with_name("copy"))
        await asyncio.to_thread(own_postgres.start)
        await site.some_writes()
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(copied, data.with_name("copy"), data)
        await asyncio.to_thread(own_postgres.start)
        process = world.nodes["b-1"].process
        await eventually(lambda: not process.running, WAIT_SECONDS, "the process ends: its database is another one")
        assert "the database is" in str(process.failure("ended"))
        assert await site.start_fenced("B", "b-1")
        await site.recover("B", "service_layer")
        await walk_on(site)

        # An empty database.
        await world.kill("b-1")
        await asyncio.to_thread(emptied, own_postgres, database)
        assert "another database" in (reason := await site.start_fenced("B", "b-1")) or "this store made" in reason
        await site.recover("B", "service_layer")
        await walk_on(site)


async def test_restarts_of_one_of_three_processes_fence_no_store(
    tmp_path: Path, kafka: Kafka, postgres: Postgres, redis_server: Redis
) -> None:
    """The others serve meanwhile and move on between any two reads of the process that starts."""
    size = Size(new=3, router_settings=(SETTINGS,))
    world = World.real(tmp_path, Stack(kafka, postgres, redis_server), FILE, size)
    async with half_moved(world, tmp_path) as site:
        for _ in range(RESTARTS):
            await world.kill("b-1")
            await world.start("b-1")
        assert (await site.standing("B")).fence_reason == ""


async def walk_on(site: Site) -> None:
    """B has its half of the buckets again, and writes in them. The stores are queried, since the router's view may be
    older than the recovery."""

    async def home() -> bool:
        try:
            counts = [Counter((await reader.bucket_owners()).values())["B"] for reader in site.readers]
        except grpc.aio.AioRpcError as error:
            # A store that has just come back may lack a connection to its database for a moment.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return counts == [BUCKETS // 2] * 2

    await eventually(home, 90.0, "B has its half")
    await site.some_writes()


def dump(server: Postgres, database: str, file: Path) -> None:
    client(server, "pg_dump", "--format=custom", f"--file={file}", database)


def restore(server: Postgres, database: str, file: Path) -> None:
    client(server, "pg_restore", "--exit-on-error", f"--dbname={database}", str(file))


def client(server: Postgres, program: str, *arguments: str) -> None:
    where = ("-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres")
    subprocess.run([locate.postgres_bin() / program, *where, *arguments], check=True, timeout=60)


def emptied(server: Postgres, database: str) -> None:
    server.drop_database(database)
    server.create_database(database)


def copied(source: Path, target: Path) -> None:
    """With the owner that PostgreSQL wants."""
    subprocess.run(["rm", "-rf", str(target)], check=True, timeout=60)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=60)

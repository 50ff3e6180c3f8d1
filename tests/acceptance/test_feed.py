"""The feed between the stores, on real parts: malformed events, lag, outages, a full outbox."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from libs.eventlog.address import open_event_log
from libs.eventlog.port import Event, EventLog
from libs.ownership.model import BUCKETS, bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.proving.servers.errors import ServerFailed
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.locate import PROJECT_ROOT
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.stores import Reader, open_readers, wait_until_quiet
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from services.router.cli.demo.run import OLD_DATABASE
from services.router.core.plan import is_canary
from tests.acceptance.talk import COLLECTION, create, get, update
from tests.waiting import eventually

CALL_SECONDS = 10.0
WAIT_SECONDS = 90.0
REASON = "an acceptance run"
OUTBOX_ENTRIES = 40
ONE_BUCKET_PERMILLE = 1


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


@dataclass
class Site:
    """A world that runs, and all ways to look at it."""

    world: World
    walk: Walk
    readers: list[Reader]
    log: EventLog
    client: Any

    async def status(self) -> Any:
        """The output of `baton status -o json`."""
        baton = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from services.router.cli import main; main()",
            *("status", "-o", "json", "--address", self.world.controls[0]),
            *("--token-file", str(self.world.directory / "token")),
            cwd=PROJECT_ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, errors = await asyncio.wait_for(baton.communicate(), WAIT_SECONDS)
        assert baton.returncode == 0, errors.decode()
        return json.loads(printed)

    async def store(self, name: str) -> Any:
        """The metric of one store, queried at once, for frequent checks. Negative means unknown."""
        return (await self.walk.status()).stores["AB".index(name)]

    async def make(self, made_id: str) -> Any:
        return await self.client.CreateSandbox(create(made_id, str(uuid4())), timeout=CALL_SECONDS)

    async def write(self, made_id: str, value: str) -> Any:
        change = update(made_id, "annotations", annotations={"value": value}, request_id=str(uuid4()))
        return await self.client.UpdateSandbox(change, timeout=CALL_SECONDS)

    async def read(self, made_id: str) -> tuple[Any, dict[str, Any]]:
        """The answer and its trailers."""
        call = self.client.GetSandbox(get(made_id), timeout=CALL_SECONDS)
        return await call, dict(await call.trailing_metadata() or ())

    async def quiet(self) -> None:
        """Nothing under way, and both stores hold the same."""
        await wait_until_quiet(self.readers, self.log, WAIT_SECONDS)
        assert await self.readers[0].digests() == await self.readers[1].digests()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.running())
        walk = await stack.enter_async_context(Walk.open(world.controls, "acceptance", world.token))
        readers = await stack.enter_async_context(open_readers(world.stores))
        log = await stack.enter_async_context(open_event_log(world.servers.event_log))
        channel = await stack.enter_async_context(open_channel(world.routers[0]))
        yield Site(world, walk, readers, log, SandboxServiceStub(channel.grpc))


def limited(world: World, name: str, setting: str, value: int) -> None:
    """Give one process another setting, before it starts."""
    process = world.nodes[name].process
    process.command = replace(process.command, env={**(process.command.env or {}), setting: str(value)})


async def test_an_event_that_cannot_be_understood_is_parked_and_the_feed_goes_on(tmp_path: Path, stack: Stack) -> None:
    async with running(World.real(tmp_path, stack)) as site:
        await site.make("before")
        await site.log.append([Event("sandboxes/bad", b"\xff\xff"), Event("", b"\x0a\x03abc")])
        await site.make("after")

        async def arrived() -> bool:
            held = {record.name for record in await site.readers[1].export()}
            return {COLLECTION + "before", COLLECTION + "after"} <= held

        await eventually(arrived, WAIT_SECONDS)

        async def parked_everywhere() -> bool:
            return [(await reader.status()).feed.parked_now for reader in site.readers] == [2, 2]

        await eventually(parked_everywhere, WAIT_SECONDS)
        for reader in site.readers:
            found = (await reader.ask(reader.stub.ListParked, rpb.ListParkedRequest())).parked
            assert {(event.key, event.event) for event in found} == {
                ("sandboxes/bad", b"\xff\xff"),
                ("", b"\x0a\x03abc"),
            }
            assert all(event.reason for event in found)
            feed = (await reader.status()).feed
            assert feed.read == feed.applied + feed.old + feed.parked + feed.journaled
            assert (feed.trouble, feed.parked) == ("", 2)

        async def shown() -> bool:
            stores = (await site.status())["stores"]
            return all((store["parked"], store["lag_events"]) == (2, 0) for store in stores.values())

        await eventually(shown, WAIT_SECONDS)


async def test_a_side_that_stands_still_is_behind_by_events_and_seconds_and_catches_up(
    tmp_path: Path, stack: Stack
) -> None:
    async with running(World.real(tmp_path, stack)) as site:
        await site.make("one")
        await site.quiet()
        # Of a store that it has never heard a router knows no lag.
        await site.walk.serving("B")
        await site.world.pause("b-1")
        try:
            for number in range(20):
                # The owner answers; a fault at the other store does not affect its client.
                assert (await site.write("one", str(number))).annotations["value"] == str(number)

            async def behind() -> bool:
                b = await site.store("B")
                return bool(b.lag_events >= 20 and b.lag_seconds > 1)

            await eventually(behind, WAIT_SECONDS)
            first = (await site.store("B")).lag_seconds

            async def grows() -> bool:
                return bool((await site.store("B")).lag_seconds > first)

            await eventually(grows, WAIT_SECONDS)
            shown = (await site.status())["stores"]["B"]
            assert shown["lag_events"] >= 20 and shown["lag_seconds"] > 1 and not shown["reachable"]
        finally:
            await site.world.resume("b-1")

        async def caught_up() -> bool:
            b = await site.store("B")
            return (b.reachable, b.lag_events, b.lag_seconds) == (True, 0, 0)

        await eventually(caught_up, WAIT_SECONDS)
        await site.quiet()


async def test_without_a_broker_writes_go_on_and_nothing_is_lost(tmp_path: Path, stack: Stack) -> None:
    async with running(World.real(tmp_path, stack)) as site:
        await site.make("one")
        await site.quiet()
        await asyncio.to_thread(stack.kafka.kill, signal.SIGKILL)
        try:
            for number in range(30):
                await site.make(f"new-{number}")
                await site.write("one", str(number))

            async def waits() -> bool:
                a, b = await site.store("A"), await site.store("B")
                return bool(a.outbox_entries >= 60 and a.outbox_oldest_seconds > 0 and b.lag_seconds > 0)

            await eventually(waits, WAIT_SECONDS)
            shown = await site.status()
            assert shown["log_trouble"] and shown["stores"]["A"]["outbox_entries"] >= 60
            assert shown["stores"]["B"]["lag_seconds"] > 0
            answer, trailers = await site.read("one")
            assert (answer.annotations["value"], metadata.STALE in trailers) == ("29", False)
        finally:
            await asyncio.to_thread(stack.kafka.start)
        await site.quiet()
        held = {record.name: record for record in await site.readers[1].export()}
        assert {COLLECTION + f"new-{number}" for number in range(30)} <= held.keys()

        async def level() -> bool:
            b = await site.store("B")
            return (b.lag_events, b.lag_seconds) == (0, 0)

        await eventually(level, WAIT_SECONDS)
        assert (await site.status())["log_trouble"] == ""


async def test_where_writes_wait_for_the_log_a_dead_broker_is_told_at_once_once_it_is_known(
    tmp_path: Path, stack: Stack
) -> None:
    async with running(World.real(tmp_path, stack, size=Size(router_settings=({"ack_logged": "OFF"},)))) as site:
        await site.make("one")
        await asyncio.to_thread(stack.kafka.kill, signal.SIGKILL)
        try:
            told = list[tuple[str, str]]()

            async def known() -> bool:
                name = f"new-{len(told)}"
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await site.make(name)
                told.append((name, reason_of(refused.value)[0]))
                return told[-1][1] == "LOG_UNAVAILABLE"

            await eventually(known, WAIT_SECONDS)
            assert {reason for _, reason in told[:-1]} <= {"NOT_LOGGED"}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await site.read(told[-1][0])
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND, "nothing was committed"
        finally:
            await asyncio.to_thread(stack.kafka.start)

        async def taken() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return bool(await site.make(told[-1][0]))
            return False

        await eventually(taken, WAIT_SECONDS)
        await site.quiet()
        held = {record.name for record in await site.readers[1].export()}
        assert held == {COLLECTION + name for name in ("one", *(name for name, _ in told))}


async def test_a_full_outbox_refuses_writes_and_lets_reads_and_handoffs_go_on(tmp_path: Path, stack: Stack) -> None:
    world = World.real(tmp_path, stack)
    limited(world, "a", "SIMPLE_MCP_OUTBOX_ENTRIES", OUTBOX_ENTRIES)
    leaving = next(f"leaving-{n}" for n in range(100 * BUCKETS) if _in_first_bucket(f"leaving-{n}"))
    staying = next(f"staying-{n}" for n in range(100) if not _in_first_bucket(f"staying-{n}"))
    async with running(world) as site:
        await site.make(leaving)
        await site.make(staying)
        await site.walk.backfill()
        for _ in range(2):
            await site.walk.advance(REASON)
        await site.quiet()
        await asyncio.to_thread(stack.kafka.kill, signal.SIGSTOP)
        try:
            written, refused = await _write_until_refused(site, staying)
            assert (refused.code(), reason_of(refused)[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL")
            answer, trailers = await site.read(staying)
            assert (answer.annotations["value"], metadata.STALE in trailers) == (written, False)
            await site.walk.canary(ONE_BUCKET_PERMILLE / 10)
            # It is B's now, whose outbox has room.
            assert (await site.write(leaving, "at B")).annotations["value"] == "at B"
            with pytest.raises(grpc.aio.AioRpcError) as again:
                await site.write(staying, "too much")
            assert reason_of(again.value)[0] == "OUTBOX_FULL"
        finally:
            await asyncio.to_thread(stack.kafka.kill, signal.SIGCONT)

        async def taken_again() -> bool:
            with suppress(grpc.aio.AioRpcError):
                await site.write(staying, "room again")
            return bool((await site.read(staying))[0].annotations["value"] == "room again")

        await eventually(taken_again, WAIT_SECONDS)
        await site.quiet()
        values = {record.name: (record.value, record.owner) for record in await site.readers[1].export()}
        assert values[COLLECTION + leaving][1] == "B"


def _in_first_bucket(made_id: str) -> bool:
    return is_canary(bucket_of(COLLECTION + made_id), ONE_BUCKET_PERMILLE)


async def _write_until_refused(site: Site, made_id: str) -> tuple[str, grpc.aio.AioRpcError]:
    """The last value that was acknowledged, and the refusal of the next one."""
    for number in range(2 * OUTBOX_ENTRIES):
        try:
            await site.write(made_id, str(number))
        except grpc.aio.AioRpcError as error:
            return str(number - 1), error
    raise AssertionError(f"{2 * OUTBOX_ENTRIES} writes were taken, {OUTBOX_ENTRIES} were to be")


async def test_while_the_owner_is_away_reads_are_marked_stale_with_their_age(tmp_path: Path, stack: Stack) -> None:
    async with running(World.real(tmp_path, stack)) as site:
        made = await site.make("one")
        await site.quiet()
        _, trailers = await site.read("one")
        assert metadata.STALE not in trailers
        await site.world.kill("a")

        async def answered() -> Any:
            # On a busy machine B may seem away too for a moment; then a read is refused, not answered wrong.
            with suppress(grpc.aio.AioRpcError):
                return await site.read("one")

        answer, trailers = await eventually(answered, WAIT_SECONDS)
        assert answer == made
        assert trailers[metadata.STALE] == "1"
        assert 0 <= float(trailers[metadata.AGE_SECONDS]) < WAIT_SECONDS
        listing = site.client.ListSandboxes(pb.ListSandboxesRequest(), timeout=CALL_SECONDS)
        assert list((await listing).sandboxes) == [made]
        assert dict(await listing.trailing_metadata())[metadata.STALE] == "1"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await site.write("one", "while its owner is away")
        assert (refused.value.code(), reason_of(refused.value)[0]) == (
            grpc.StatusCode.UNAVAILABLE,
            "OWNER_UNAVAILABLE",
        )
        await site.world.start("a")

        async def strict_again() -> bool:
            return metadata.STALE not in (await site.read("one"))[1]

        await eventually(strict_again, WAIT_SECONDS)
        assert (await site.status())["stale_reads"] >= 2


@pytest.mark.parametrize(
    ("partitions", "config", "said"),
    [
        (8, {"cleanup.policy": "delete"}, "has 8 partitions, the settings say 16"),
        (16, {"cleanup.policy": "compact"}, "cleanup.policy=compact, it must be delete"),
    ],
)
async def test_a_topic_that_would_lose_events_is_refused_by_every_process(
    tmp_path: Path, stack: Stack, partitions: int, config: dict[str, str], said: str
) -> None:
    world = World.real(tmp_path, stack)
    await stack.kafka.create_topic(world.servers.event_log.url.rpartition("/")[2], partitions, config)
    shutil.copyfile(OLD_DATABASE, tmp_path / "a.db")
    for name in world.names:
        try:
            with pytest.raises(ServerFailed, match="ended with code 1") as refused:
                await world.start(name)
        finally:
            await world.stop_all()
        assert said in str(refused.value)
        assert "Traceback" not in str(refused.value)

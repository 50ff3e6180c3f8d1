"""Watching real processes on real servers through every phase, there and back, and through the death of each store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import grpc

from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from libs.rpc.channel import Channel, open_channel
from services.router.cli.demo.run import OLD_DATABASE
from tests.acceptance.watchers import Watcher, watching
from tests.waiting import eventually

REASON = "an acceptance run"
NAMES = 24
WRITERS = 4
CALL_SECONDS = 2.0
PAUSE_SECONDS = 0.01
BOUND_SECONDS = 60.0

_SERVICE = "/sandbox.v1.SandboxService"


@dataclass
class Writers:
    """Update, delete and bring back sandboxes all the time, each its own ones."""

    channel: Channel
    written: int = 0
    failures: list[str] = field(default_factory=list)

    async def _call(self, method: str, request: bytes) -> None:
        try:
            await self.channel.multi_callable(f"{_SERVICE}/{method}")(request, timeout=CALL_SECONDS)
            self.written += 1
        except grpc.aio.AioRpcError as error:
            self.failures.append(error.code().name)

    async def write(self, name: str, chance: random.Random) -> None:
        request_id = str(uuid4())
        kind = chance.random()
        if kind < 0.1:
            delete = pb.DeleteSandboxRequest(name=name, request_id=request_id)
            await self._call("DeleteSandbox", delete.SerializeToString())
        elif kind < 0.2:
            undelete = pb.UndeleteSandboxRequest(name=name, request_id=request_id)
            await self._call("UndeleteSandbox", undelete.SerializeToString())
        else:
            sandbox = Sandbox(name=name, account="acme", spec=SandboxSpec(image="i:1"), labels={"at": request_id})
            update = pb.UpdateSandboxRequest(sandbox=sandbox, request_id=request_id, allow_missing=True)
            await self._call("UpdateSandbox", update.SerializeToString())

    async def _go_on(self, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            await self.write(f"sandboxes/watched-{seed}-{chance.randrange(NAMES // WRITERS)}", chance)
            await asyncio.sleep(PAUSE_SECONDS)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._go_on(seed)) for seed in range(WRITERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.exception() for task in tasks if not task.cancelled()] == [], "a writer ended by itself"

    async def some_more(self) -> None:
        before = self.written
        await eventually(lambda: self.written >= before + 60, BOUND_SECONDS, "writes go on")


async def all_there_is(channel: Channel) -> dict[str, Sandbox]:
    """Return all sandboxes by a strict list."""
    found: dict[str, Sandbox] = {}
    token = ""
    while True:
        request = pb.ListSandboxesRequest(page_size=500, show_deleted=True, page_token=token)
        answer = await channel.multi_callable(f"{_SERVICE}/ListSandboxes")(request.SerializeToString(), timeout=10)
        page = pb.ListSandboxesResponse.FromString(answer)
        found |= {sandbox.name: sandbox for sandbox in page.sandboxes}
        token = page.next_page_token
        if not token:
            return found


async def shows(watcher: Watcher, channel: Channel) -> bool:
    """Whether its view equals a list. Each call lists again: a write whose caller has left may come late."""
    wanted = await all_there_is(channel)
    if not watcher.request.show_deleted:
        wanted = {name: sandbox for name, sandbox in wanted.items() if not sandbox.HasField("delete_time")}
    assert watcher.view.keys() == wanted.keys()
    for name, sandbox in wanted.items():
        assert watcher.view[name] == sandbox
    return True


async def test_a_watcher_misses_nothing_through_all_phases_and_the_death_of_its_store(
    tmp_path: Path, kafka: Kafka, postgres: Postgres, redis_server: Redis
) -> None:
    patient = {"watch_patience_seconds": f"{BOUND_SECONDS:g}", "rollback_automatic": "false"}
    size = Size(router_settings=(patient,))
    world = World.real(tmp_path, Stack(kafka, postgres, redis_server), OLD_DATABASE, size)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.running())
        walk = await stack.enter_async_context(Walk.open(world.controls, "acceptance", world.token))
        walk.counts_records = False
        router = await stack.enter_async_context(open_channel(world.routers[0]))
        old = await stack.enter_async_context(open_channel(world.nodes["a"].public))
        at_a = await stack.enter_async_context(watching(router))
        live = await stack.enter_async_context(watching(router, show_deleted=False))
        by_old_endpoint = await stack.enter_async_context(watching(old))
        writers = Writers(router)
        async with writers.busy():
            await walk.backfill()
            for phase in ("SHADOW", "DUAL_WRITE", "DUAL_READ"):
                await walk.advance(REASON)
                if phase == "DUAL_WRITE":
                    await walk.canary(50)
                await writers.some_more()
            await walk.settled()
            at_b = await stack.enter_async_context(watching(router))
            await eventually(lambda: at_b.synced, BOUND_SECONDS)
            await world.kill("b-1")
            await world.start("b-1")
            await writers.some_more()
            await walk.advance(REASON)
            await walk.settled()
            await world.kill("a")
            await world.start("a")
            await writers.some_more()
            await walk.rollback("OFF", REASON)
            await walk.settled()
            await writers.some_more()
        watchers = {"at A": at_a, "live ones": live, "by A's own endpoint": by_old_endpoint, "at B": at_b}
        for name, watcher in watchers.items():
            await eventually(partial(shows, watcher, router), BOUND_SECONDS, name)
        assert sum(name.startswith("sandboxes/watched-") for name in at_a.view) == NAMES
        for name, watcher in watchers.items():
            assert watcher.odd == [], name
            if watcher is not by_old_endpoint:
                assert (watcher.resets, watcher.ends) == (1, []), f"{name}: never disturbed"
        assert by_old_endpoint.ends, "its endpoint was killed"
        print(f"{writers.written} writes, {len(writers.failures)} failed; answers: {at_a.answers} and {at_b.answers}")

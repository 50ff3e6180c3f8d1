"""The promise, on real parts: whatever dies, and whichever way traffic moves, no acknowledged write is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from libs.eventlog.address import open_event_log
from libs.proving.history.history import LEASES, Outcome
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.evidence import gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import open_readers, wait_until_quiet
from libs.proving.trial.verdict import Result, judge
from libs.proving.trial.walk import Move, Walk
from libs.proving.trial.world import Size, World
from services.router.cli.demo.run import OLD_DATABASE
from tests.acceptance.faults import Fault, flushed, one_after_the_other, process_faults, server_faults
from tests.storms import only_in_full, sized

LEAST_CALLS = 100
"""For each fault."""
QUIET_SECONDS = 60.0
REASON = "an acceptance run"
# So many deaths in a row are a reason to leave B; here it is the walk that says where traffic goes.
SIZE = Size(routers=2, new=2, router_settings=({"rollback_automatic": "false"},) * 2)

Step = Callable[[], Awaitable[Move]]


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


async def back_and_forth(walk: Walk, load: Load, stop: asyncio.Event) -> None:
    """Forward to CUTOVER and back to A, repeatedly, until `stop` is set."""
    while not stop.is_set():
        for step in forward_steps(walk):
            load.label((await step()).after)
            if stop.is_set():
                return
        await walk.rollback("OFF", REASON)
        load.label("OFF")
        await walk.lift_hold(REASON)


def forward_steps(walk: Walk) -> list[Step]:
    return [
        lambda: walk.advance(REASON),
        lambda: walk.advance(REASON),
        lambda: walk.canary(10),
        lambda: walk.canary(50),
        lambda: walk.advance(REASON),
        lambda: walk.advance(REASON),
    ]


@asynccontextmanager
async def traffic(world: World, load: Load) -> AsyncIterator[None]:
    """Load while the block runs, and phases that walk back and forth under it."""
    stop = asyncio.Event()
    async with Walk.open(world.controls, "acceptance", world.token) as walk:
        walk.patience_seconds = 90.0
        await walk.backfill()
        async with load.running():
            walking = asyncio.create_task(back_and_forth(walk, load, stop))
            try:
                yield
            finally:
                stop.set()
                await walking
        await walk.settled()


async def run(world: World, directory: Path, faults: list[Fault]) -> tuple[Result, Load]:
    rate = sized(short=80, full=160)
    plan = LoadPlan(clients=8, calls_per_second=rate, deadline_seconds=0.2, made_names=20, fresh_share=0.2, seed=7)
    load = Load(plan, world.routers, directory / "history")
    async with (
        world.running(),
        open_readers(world.stores) as readers,
        open_event_log(world.servers.event_log) as log,
    ):
        before = await readers[0].export()
        async with traffic(world, load):
            await one_after_the_other(faults, load)
        await wait_until_quiet(readers, log, QUIET_SECONDS)
        evidence = await gather(load.calls(), readers, log, before)
        evidence.save(load.directory)
    return judge(evidence), load


@only_in_full
async def test_nothing_is_lost_while_our_own_processes_die_in_turn(tmp_path: Path, stack: Stack) -> None:
    world = World.real(tmp_path, stack, OLD_DATABASE, SIZE)
    faults = process_faults(world)
    result, load = await run(world, tmp_path, faults)
    assert load.stats.attempts >= LEAST_CALLS * len(faults), "too few calls to show anything"
    assert result.ok, "\n".join(result.problems)


async def test_nothing_is_lost_while_the_servers_die_in_turn(tmp_path: Path, stack: Stack) -> None:
    world = World.real(tmp_path, stack, OLD_DATABASE, SIZE)
    faults = [fault for server in (stack.kafka, stack.postgres, stack.redis) for fault in server_faults(server)]
    result, load = await run(world, tmp_path, [*faults, flushed(stack.redis)])
    assert load.stats.attempts >= LEAST_CALLS * len(faults), "too few calls to show anything"
    assert result.ok, "\n".join(result.problems)
    leases = [call for call in load.calls() if call.method in LEASES and call.outcome is Outcome.OK]
    assert {call.method for call in leases} == LEASES, "no leases, nothing shown of them"

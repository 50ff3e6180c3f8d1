"""A flip storm on real parts, with routers that see each flip at different times: nothing is lost, nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.devstack.kafka import Kafka
from libs.devstack.postgres import Postgres
from libs.devstack.redis import Redis
from libs.devstack.stack import Stack
from libs.trial.chaos import StormPlan
from libs.trial.chaos_report import Setup, StormReport, run_storm
from libs.trial.load import LoadPlan
from libs.trial.walk import Walk
from libs.trial.world import Size, World

OLD_DATABASE = Path(__file__).parents[1] / "fixtures" / "old_simple_mcp.db"
SEES_FLIPS_AFTER = ({"refresh_seconds": "0.05"}, {"refresh_seconds": "0.4"}, {"refresh_seconds": "1.0"})
LEAST_CALLS_PER_SECOND = 50
LEAST_FLIPS = 30


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


async def storm(world: World, directory: Path, plan: StormPlan) -> StormReport:
    setup = Setup(
        controls=world.controls,
        token=world.token,
        public=world.routers,
        stores=world.store_processes,
        event_log=world.servers.event_log,
        load=LoadPlan(clients=8, calls_per_second=150, deadline_seconds=1.0, made_names=12),
    )
    async with world.running():
        async with Walk.open(world.controls, "acceptance", world.token) as walk:
            await walk.backfill()
        return await run_storm(setup, plan, directory, lambda _: None)


async def test_a_flip_storm_loses_nothing_and_leaves_nothing_behind(tmp_path: Path, stack: Stack) -> None:
    world = World.real(tmp_path, stack, OLD_DATABASE, Size(routers=3, new=2, router_settings=SEES_FLIPS_AFTER))
    report = await storm(world, tmp_path / "history", StormPlan(every_seconds=0.5, for_seconds=25.0, seed=11))
    assert report.ok, "\n".join(report.problems)
    assert sum(report.flips.values()) >= LEAST_FLIPS, report.refused
    assert {"flag", "advance", "rollback"} <= report.flips.keys()
    assert (report.calls or 0) / report.seconds >= LEAST_CALLS_PER_SECOND, "too few calls to show anything"
    assert report.handoffs > 0, "no record moved: the storm shows nothing"
    assert report.counts == dict.fromkeys(report.counts, 0)
    assert len(report.growths) == 6
    assert not any(one.restarted for one in report.growths)

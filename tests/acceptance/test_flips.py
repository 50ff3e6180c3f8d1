"""A flip storm on real parts, with routers that see each flip at different times: nothing is lost, nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.chaos import StormPlan
from libs.proving.trial.chaos_report import Setup, StormReport, run_storm
from libs.proving.trial.load import LoadPlan
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from services.router.cli.demo.run import OLD_DATABASE
from tests.storms import only_in_full, sized
from tests.waiting import NotReached

SEES_FLIPS_AFTER = ({"refresh_seconds": "0.05"}, {"refresh_seconds": "0.4"}, {"refresh_seconds": "1.0"})
LEAST_CALLS = sized(short=600, full=1250)
LEAST_FLIPS = sized(short=15, full=30)
MOST_STORMS = 6
"""On a machine so busy that one storm has too few calls to show anything, another one follows."""


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


async def storms(world: World, directory: Path, plan: StormPlan) -> list[StormReport]:
    """Until there were enough calls and flips."""
    setup = Setup(
        controls=world.controls,
        token=world.token,
        public=world.routers,
        stores=world.store_processes,
        event_log=world.servers.event_log,
        load=LoadPlan(clients=8, calls_per_second=sized(short=100, full=150), deadline_seconds=1.0, made_names=12),
    )
    async with world.running():
        async with Walk.open(world.controls, "acceptance", world.token) as walk:
            await walk.backfill()
        reports: list[StormReport] = []
        for number in range(MOST_STORMS):
            reports.append(await run_storm(setup, plan, directory / f"{number}", lambda _: None))
            calls = sum(report.calls or 0 for report in reports)
            flips = sum(sum(report.flips.values()) for report in reports)
            if calls >= LEAST_CALLS and flips >= LEAST_FLIPS:
                return reports
    raise NotReached(f"{calls} calls and {flips} flips in {MOST_STORMS} storms: too few to show anything")


@only_in_full
async def test_a_flip_storm_loses_nothing_and_leaves_nothing_behind(tmp_path: Path, stack: Stack) -> None:
    world = World.real(tmp_path, stack, OLD_DATABASE, Size(routers=3, new=2, router_settings=SEES_FLIPS_AFTER))
    reports = await storms(
        world, tmp_path / "history", StormPlan(every_seconds=0.5, for_seconds=sized(short=14.0, full=25.0), seed=11)
    )
    assert sum(report.handoffs for report in reports) > 0, "no record moved: the storms show nothing"
    for report in reports:
        assert report.ok, "\n".join(report.problems)
        assert {"flag", "advance", "rollback"} <= report.flips.keys()
        assert report.counts == dict.fromkeys(report.counts, 0)
        assert len(report.growths) == 6
        assert not any(one.restarted for one in report.growths)

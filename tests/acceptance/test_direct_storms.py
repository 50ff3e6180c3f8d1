"""Storms and deaths under direct clients: some follow the routes, some call any process of any store, some a router."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from baton_client.bootstrap import bootstrap
from libs.eventlog.address import open_event_log
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.chaos import StormPlan
from libs.proving.trial.chaos_report import Setup, StormReport, run_storm
from libs.proving.trial.evidence import gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import open_readers, wait_until_quiet
from libs.proving.trial.verdict import judge
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from services.router.cli.demo.run import OLD_DATABASE
from tests.acceptance.faults import one_after_the_other, process_faults
from tests.acceptance.test_faults import QUIET_SECONDS, traffic
from tests.acceptance.test_flips import MOST_STORMS, SEES_FLIPS_AFTER
from tests.storms import sized

CLIENTS = LoadPlan(clients=9, direct=3, by_xds=3)
"""A third each: any process, the routes, a router."""
XDS = "xds:///sandbox.v1.SandboxService"
LEAST_CALLS = sized(short=500, full=1250)
LEAST_DIRECT = 50


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gRPC reads the file when the first channel with xDS is opened."""
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(tmp_path / "bootstrap.json"))
    return tmp_path


def direct_world(directory: Path, stack: Stack, size: Size) -> World:
    world = World.real(directory / "world", stack, OLD_DATABASE, size)
    found = bootstrap(f"ipv4:{','.join(world.xds)}", node="storm")
    (directory / "bootstrap.json").write_text(json.dumps(found))
    return world


async def direct_calls(world: World) -> tuple[int, int]:
    """Direct calls that the running processes of the stores have answered, and those that they have passed on."""
    async with open_readers(world.store_processes) as readers:
        asked = pb.SyncDirectCallsRequest(router="test")
        answers = [await reader.ask(reader.stub.SyncDirectCalls, asked) for reader in readers]
    return sum(one.calls for answer in answers for one in answer.calls), sum(one.passed_on for one in answers)


async def test_a_flip_storm_with_direct_clients_loses_nothing(directory: Path, stack: Stack) -> None:
    world = direct_world(directory, stack, Size(routers=3, new=2, xds=True, router_settings=SEES_FLIPS_AFTER))
    setup = Setup(
        controls=world.controls,
        token=world.token,
        public=world.routers,
        direct=world.public_stores,
        xds=XDS,
        stores=world.store_processes,
        event_log=world.servers.event_log,
        load=replace(CLIENTS, calls_per_second=sized(short=90, full=150), deadline_seconds=1.0, made_names=12),
    )
    plan = StormPlan(every_seconds=0.5, for_seconds=sized(short=14.0, full=60.0), seed=23)
    async with world.running(), Walk.open(world.controls, "acceptance", world.token) as walk:
        await walk.backfill()
        reports: list[StormReport] = []
        calls = answered = passed_on = 0
        while calls < LEAST_CALLS or min(answered, passed_on) < LEAST_DIRECT:
            assert len(reports) < MOST_STORMS, f"too few to show anything: {calls=} {answered=} {passed_on=}"
            reports.append(await run_storm(setup, plan, directory / f"{len(reports)}", lambda _: None))
            calls += reports[-1].calls or 0
            answered, passed_on = await direct_calls(world)
    assert sum(report.handoffs for report in reports) > 0, "no record moved: the storms show nothing"
    for report in reports:
        assert report.ok, "\n".join(report.problems)
        assert report.counts == dict.fromkeys(report.counts, 0)
        assert {"flag", "advance", "rollback"} <= report.flips.keys()
        assert len(report.growths) == 6
        assert not any(one.restarted for one in report.growths)


async def test_nothing_is_lost_under_direct_clients_while_our_own_processes_die_in_turn(
    directory: Path, stack: Stack
) -> None:
    size = Size(routers=2, new=2, xds=True, router_settings=({"rollback_automatic": "false"},) * 2)
    world = direct_world(directory, stack, size)
    faults = process_faults(world)
    rate = sized(short=80, full=160)
    plan = replace(CLIENTS, calls_per_second=rate, deadline_seconds=0.2, made_names=20, fresh_share=0.2, seed=9)
    load = Load(plan, world.routers, directory / "history", direct=world.public_stores, xds=XDS)
    async with (
        world.running(),
        open_readers(world.stores) as readers,
        open_event_log(world.servers.event_log) as log,
    ):
        before = await readers[0].export()
        async with traffic(world, load):
            await one_after_the_other(faults, load)
        await wait_until_quiet(readers, log, QUIET_SECONDS)
        answered, passed_on = await direct_calls(world)
        evidence = await gather(load.calls(), readers, log, before)
        evidence.save(load.directory)
    result = judge(evidence)
    assert result.ok, "\n".join(result.problems)
    assert load.stats.attempts >= 100 * len(faults), "too few calls to show anything"
    assert min(answered, passed_on) > 0, f"since the last start: {answered} answered, {passed_on} passed on"

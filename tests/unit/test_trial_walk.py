"""A walk through the phases of a whole system in one process, and the evidence that is read from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from libs.errors import StoreNotReady
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.servers.errors import ServerFailed
from libs.proving.servers.process import Command, ServerProcess
from libs.proving.trial.arrival import agreed_digests, wait_until_arrived
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.evidence import gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import StoreAccess, open_readers, read_log, wait_until_quiet
from libs.proving.trial.verdict import judge
from libs.proving.trial.walk import GatesBlock, Walk, phase_name
from libs.proving.trial.world import Node, World
from libs.rpc import metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import Context
from libs.rpc.server import RawService
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import CONTRACT, Kit, listening
from tests.waiting import eventually

CONTROL = "baton.control.v1.ControlService"
SANDBOXES = Kit(SandboxOperations(), CONTRACT, sandbox_columns)


def stores_of(controlled: ControlledSystem) -> list[StoreAccess]:
    return [StoreAccess(store.value, backend.server.address) for store, backend in controlled.system.backends.items()]


@pytest.mark.slow
async def test_a_walk_there_and_back_under_load_leaves_evidence_that_passes(tmp_path: Path) -> None:
    async with (
        running_controlled_system(kit=SANDBOXES) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        load = Load(LoadPlan(clients=3, calls_per_second=300), [controlled.system.client.address], tmp_path)
        async with load.running():
            await walk.backfill()
            for _ in ("SHADOW", "DUAL_WRITE"):
                await _advance(walk)
            await walk.canary(50)
            await walk.canary(100)
            for _ in ("DUAL_READ", "CUTOVER"):
                await _advance(walk)
            await walk.rollback("OFF", "there and back")
            await walk.lift_hold("again")
        async with open_readers(stores_of(controlled)) as readers:
            await walk.settled()
            await wait_until_quiet(readers, controlled.system.log, 20.0)
            evidence = await gather(load.calls(), readers, controlled.system.log)
        journal = await walk.journal()
    result = judge(evidence)
    assert result.problems == []
    assert {content.store for content in evidence.stores} == {"A", "B"}
    assert [move.after for move in walk.moves] == [
        "SHADOW",
        "DUAL_WRITE 0 %",
        "DUAL_WRITE 50 %",
        "DUAL_WRITE 100 %",
        "DUAL_READ",
        "CUTOVER",
        "OFF, held at A",
        "OFF",
    ]
    assert any(move.records for move in walk.moves)
    assert walk.overrides == sum(entry.overridden for entry in journal.entries) == 4


async def _advance(walk: Walk) -> None:
    unmeasured = await walk.unpassed_gates()
    await walk.advance(f"not measured yet: {', '.join(unmeasured)}")


async def test_gates_block_a_step_without_a_reason_and_nothing_is_changed() -> None:
    async with (
        running_controlled_system(kit=SANDBOXES) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        with pytest.raises(GatesBlock, match="audit INCONCLUSIVE"):
            await walk.advance()
        assert phase_name((await walk.status()).setting) == "OFF"
        assert walk.moves == []


async def test_a_gate_that_fails_is_waited_for_within_the_patience() -> None:
    async with (
        running_controlled_system(kit=SANDBOXES) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        walk.patience_seconds = 0.3
        with pytest.raises(TrialFailed, match="no backfill has finished"):
            await walk.unpassed_gates()


async def test_only_gates_that_may_rightly_fail_are_left_after_the_short_wait() -> None:
    async with (
        running_controlled_system(kit=SANDBOXES) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        flows = controlled.flows
        await eventually(lambda: flows.evidence(flows.cache.current).lag_seconds is not None)
        unpassed = await walk.gates_awaited({gate.name for gate in (await walk.plan()).gates}, 0.0)
        assert "backfill" in unpassed
        rest = set(unpassed) - {"backfill"}
        waiting = asyncio.create_task(walk.gates_awaited(rest, 0.0))
        await walk.backfill()
        # Gates may begin to pass meanwhile.
        assert set(await waiting) <= rest


async def test_a_walk_says_what_it_waits_for_when_nothing_moves() -> None:
    async with (
        running_controlled_system(kit=SANDBOXES, mover=False) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        walk.patience_seconds = 0.3
        with pytest.raises(TrialFailed, match="every bucket is where OFF wants it"):
            await walk.settled()


async def test_what_a_router_refuses_ends_the_walk_with_the_routers_words() -> None:
    async with (
        running_controlled_system(kit=SANDBOXES) as controlled,
        Walk.open([controlled.address], "tester") as walk,
    ):
        with pytest.raises(TrialFailed, match="ILLEGAL_MOVE"):
            await walk.canary(10)


async def test_a_change_whose_answer_is_lost_is_made_once() -> None:
    async with running_controlled_system(kit=SANDBOXES) as controlled, _losing(controlled, "AdvancePhase") as address:
        async with Walk.open([address], "tester") as walk:
            move = await walk.advance("a reason")
        assert move.after == "SHADOW"
        actions = [entry.action for entry in (await controlled.control.ListJournal(pb.ListJournalRequest())).entries]
        assert actions.count("advance") == 1


async def test_a_walk_goes_on_at_another_router_when_one_is_away() -> None:
    async with running_controlled_system(kit=SANDBOXES) as controlled, listening() as gone:
        await gone.drain(0.0)
        async with Walk.open([gone.address, controlled.address], "tester") as walk:
            assert (await walk.advance("a reason")).after == "SHADOW"


async def test_the_token_of_the_control_listener_is_shown() -> None:
    token = "0123456789abcdef"
    async with running_controlled_system(kit=SANDBOXES, token=token.encode()) as controlled:
        async with Walk.open([controlled.address], "tester", token) as walk:
            assert phase_name((await walk.status()).setting) == "OFF"
        async with Walk.open([controlled.address], "tester") as stranger:
            with pytest.raises(TrialFailed, match="TOKEN_REFUSED"):
                await stranger.status()


async def test_changes_that_are_not_in_the_log_are_not_quiet(tmp_path: Path) -> None:
    async with (
        running_controlled_system(kit=SANDBOXES, feeds=False) as controlled,
        open_readers(stores_of(controlled)) as readers,
    ):
        load = Load(LoadPlan(clients=1, calls_per_second=0), [controlled.system.client.address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.acknowledged_writes >= 3)
        assert await read_log(controlled.system.log) == []
        with pytest.raises(TrialFailed, match=r"store A: \d+ changes in the outbox"):
            await wait_until_quiet(readers, controlled.system.log, 0.2)


async def test_stores_that_others_write_to_meanwhile_are_found_to_agree(tmp_path: Path) -> None:
    """A storm's own load has ended, that of others goes on: there is no moment without a change under way."""
    async with running_controlled_system(kit=SANDBOXES) as controlled, open_readers(stores_of(controlled)) as readers:
        others = Load(LoadPlan(clients=4, calls_per_second=0), [controlled.system.client.address], tmp_path)
        async with others.running():
            await eventually(lambda: others.stats.acknowledged_writes >= 20)
            before = others.stats.acknowledged_writes
            names = {held.name for held in await readers[0].export()}
            await wait_until_arrived(readers, controlled.system.log, names, 30.0)
            a, b = await agreed_digests(readers, 30.0)
            await eventually(lambda: others.stats.acknowledged_writes > before)
        assert a and a == b


async def test_changes_that_are_not_in_the_log_have_not_arrived(tmp_path: Path) -> None:
    async with (
        running_controlled_system(kit=SANDBOXES, feeds=False) as controlled,
        open_readers(stores_of(controlled)) as readers,
    ):
        load = Load(LoadPlan(clients=1, calls_per_second=0), [controlled.system.client.address], tmp_path)
        async with load.running():
            await eventually(lambda: load.stats.acknowledged_writes >= 3)
        with pytest.raises(TrialFailed, match=r"store A: \d+ changes in the outbox"):
            await wait_until_arrived(readers, controlled.system.log, {call.key for call in load.calls()}, 0.2)
        a, b = await agreed_digests(readers, 0.2)
        assert a != b, "B has none of the records"


async def test_a_process_that_does_not_come_up_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    made = World.embedded(tmp_path)
    program = ["/bin/sh", "-c", "echo the port is in use; exit 3"]
    node = Node("a", "127.0.0.1:1", "127.0.0.1:1", ServerProcess(Command("a", program, tmp_path / "a.log")))
    world = World(tmp_path, made.servers, {"a": node}, made.token, "embedded")
    with pytest.raises(ServerFailed, match=r"a: ended with code 3[\s\S]*the port is in use"):
        await world.start("a")
    with pytest.raises(ServerFailed, match="ended unexpectedly"):
        world.check()
    await world.stop_all()
    world.check()


def test_processes_do_not_see_settings_that_were_meant_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPLE_MCP_PUBLIC", "10.0.0.1:1")
    monkeypatch.setenv("BATON_ROUTER_STALE_READS", "false")
    for node in World.embedded(tmp_path).nodes.values():
        assert node.process.command.env is not None
        assert "10.0.0.1:1" not in node.process.command.env.values()
        assert "BATON_ROUTER_STALE_READS" not in node.process.command.env


@asynccontextmanager
async def _losing(controlled: ControlledSystem, method: str) -> AsyncIterator[str]:
    """Address of a control API that executes requests, and loses its first answer to `method`."""
    lost: list[str] = []

    async def pass_on(name: str, request: bytes, context: Context) -> bytes:
        given = tuple((key, value) for key, value in context.invocation_metadata() or () if key == metadata.TOKEN)
        call = channel.multi_callable(f"/{CONTROL}/{name}")
        answer = await call(request, timeout=5.0, metadata=grpc.aio.Metadata(*given))
        if name == method and not lost:
            lost.append(name)
            raise StoreNotReady
        return answer

    def handler(name: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        return lambda request, context: pass_on(name, request, context)

    names = [method.name for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods]
    service = RawService(CONTROL, {name: handler(name) for name in names})
    async with open_channel(controlled.address) as channel, listening(service) as server:
        yield server.address
    assert lost

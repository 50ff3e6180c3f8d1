"""`baton probe`: synthetic calls are samples for the gates and leave nothing that clients see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.errors import InvalidField
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from services.router.cli.failure import Exit
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from services.router.flows.steering.probe import NAMES, Probe, ProbePlan, ProbeUnderWay
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import CONTRACT, Kit, new
from tests.waiting import eventually

SANDBOXES = Kit(SandboxOperations(), CONTRACT, sandbox_columns, schema_version=2)
BOUND_SECONDS = 30.0


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(kit=SANDBOXES) as running:
        yield running


def client(controlled: ControlledSystem) -> Any:
    return SandboxServiceStub(controlled.system.client.grpc)


async def names(controlled: ControlledSystem) -> list[str]:
    listed = await client(controlled).ListSandboxes(
        pb.ListSandboxesRequest(show_deleted=True, page_size=500), timeout=5
    )
    return [sandbox.name for sandbox in listed.sandboxes]


async def test_a_probe_gives_samples_of_both_stores_and_no_client_sees_its_writes(controlled: ControlledSystem) -> None:
    for name in ("one", "two"):
        await client(controlled).CreateSandbox(new(name), timeout=5)
    for phase in (Phase.SHADOW, Phase.DUAL_WRITE):
        await controlled.flows.migration.advance(Decision("ann", "by hand", override=True), phase)
    await controlled.flows.migration.set_canary(Decision("ann"), 500)
    await eventually(lambda: controlled.flows.mover.settled)
    watch = client(controlled).WatchSandboxes(pb.WatchSandboxesRequest(show_deleted=True))
    seen: list[str] = []
    async with asyncio.timeout(BOUND_SECONDS):
        while not (heard := await watch.read()).synced:
            seen += [sandbox.name for sandbox in heard.sandboxes]
        before = controlled.flows.measurement.mine().answered
        view = await answer(controlled, "probe", "--for", "2s", "--rate", "60", "--writes", "--reason", "thin", "--yes")
        assert view["writes"] >= 2 * NAMES and view["faults"] == 0, view
        assert view["answered_by_a"] > 0 and view["answered_by_b"] > 0, view
        assert controlled.flows.measurement.mine().answered.by_b > before.by_b
        assert await names(controlled) == ["sandboxes/one", "sandboxes/two"]
        await client(controlled).CreateSandbox(new("three"), timeout=5)
        while "sandboxes/three" not in seen:
            heard = await watch.read()
            seen += [*(sandbox.name for sandbox in heard.sandboxes), *heard.removed]
    watch.cancel()
    assert not [name for name in seen if "probe" in name], seen
    newest = (await answer(controlled, "journal", "--limit", "1"))["entries"][0]
    assert (newest["action"], newest["reason"]) == ("probe begun", "thin (2 s, 60 calls/s, reads and writes)")


async def test_a_probe_changes_no_record_and_a_dry_run_calls_nothing(controlled: ControlledSystem) -> None:
    made = await client(controlled).CreateSandbox(new("one"), timeout=5)
    view = await answer(controlled, "probe", "--for", "1s", "--dry-run")
    assert view["dry_run"] is True and "reads" not in view
    await answer(controlled, "probe", "--for", "1s", "--rate", "50", "--writes", "--yes")
    assert await client(controlled).GetSandbox(pb.GetSandboxRequest(name="sandboxes/one"), timeout=5) == made
    assert controlled.flows.cache.current.phase is Phase.OFF


async def test_a_probe_is_bounded_and_one_at_a_time(controlled: ControlledSystem) -> None:
    probe = Probe(
        controlled.system.contract,
        controlled.system.stores,
        lambda: controlled.system.router.address,
        controlled.flows.clock,
    )
    for plan in (ProbePlan(0.5, 20, False), ProbePlan(3601, 20, False), ProbePlan(5, 201, False)):
        with pytest.raises(InvalidField):
            probe.check(plan)
    first = probe.run(ProbePlan(60, 20, False))
    await anext(first)
    with pytest.raises(ProbeUnderWay):
        probe.check(ProbePlan(1, 20, False))
    await first.aclose()
    probe.check(ProbePlan(1, 20, False))
    assert (await baton(controlled, "probe", "--for", "2h", "--yes")).exit_code == Exit.USAGE

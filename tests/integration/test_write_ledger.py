"""The router's ledger: it finds every acknowledged write that a store has lost, and none while records move."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from libs.ownership.model import Store, Version
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    AcquireLeaseRequest,
    DeleteSandboxRequest,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
)
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from libs.sandboxes.columns import sandbox_columns
from libs.sandboxes.operations import SandboxOperations
from services.router.cli.failure import Exit
from services.router.core.phase import Phase
from services.router.core.write_ledger import LedgerCounts, Loss
from services.router.flows.calls import write_auditor
from tests.commands import answer, baton
from tests.integration.test_router import go_to, lend, put
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.store import CONTRACT as SANDBOX_CONTRACT
from tests.system.store import Kit, new
from tests.system.whole import System, running_system
from tests.waiting import eventually

SANDBOXES = Kit(SandboxOperations(), SANDBOX_CONTRACT, sandbox_columns)

PATH = "shelf/r/1"


async def looked_at(system: System) -> None:
    """Everything that was acknowledged was looked at."""

    async def all_were() -> bool:
        await system.auditor.look()
        return not system.auditor.ledger.counts.waiting

    await eventually(all_were)


async def with_a_loan(system: System) -> None:
    await put(system, "1")
    await lend(system, PATH, "ann")


def plant(system: System, store: Store, **fields: object) -> None:
    """Changes a row as no protocol would."""
    rows = system.ports(store)._state.rows
    rows[PATH] = replace(rows[PATH], **fields)  # type: ignore[arg-type]


async def test_a_write_that_is_there_is_no_finding_wherever_its_record_has_moved() -> None:
    async with running_system() as system:
        await with_a_loan(system)
        await go_to(system, Phase.CUTOVER)
        await looked_at(system)
        await lend(system, PATH, "bob")
        await looked_at(system)
        counts = system.auditor.ledger.counts
        assert (counts.lost, counts.sampled) == (0, 2)


@pytest.mark.parametrize(("revision", "lost"), [(9, 0), (1, 1)])
async def test_a_row_that_is_too_large_to_be_read_is_judged_by_its_version(revision: int, lost: int) -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        version = Version(0, revision)
        plant(system, Store.A, version=version, write_version=version, payload=b"\xff" * 17 * 1024 * 1024)
        await looked_at(system)
        assert system.auditor.ledger.counts.lost == lost


async def test_a_row_that_went_back_in_time_is_found() -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        before = system.ports(Store.A)._state.rows[PATH]
        await lend(system, PATH, "bob")
        plant(system, Store.A, version=before.version, write_version=before.write_version, payload=before.payload)
        await looked_at(system)
        (finding,) = system.auditor.ledger.findings
        assert (finding.loss, finding.write.key, finding.write.revision) == (Loss.OLDER, PATH, 3)


async def test_a_row_that_is_gone_is_found_even_long_after_it_was_seen() -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        await looked_at(system)
        del system.ports(Store.A)._state.rows[PATH]
        await system.auditor.look()
        await system.auditor.look()
        (finding,) = system.auditor.ledger.findings
        assert (finding.loss, finding.rows) == (Loss.MISSING, ())


async def test_a_row_with_other_content_than_the_client_was_shown_is_found() -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        plant(system, Store.A, payload=b"")
        await looked_at(system)
        assert [finding.loss for finding in system.auditor.ledger.findings] == [Loss.CHANGED]


async def test_while_the_owner_is_away_nothing_is_said_of_its_records() -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        await system.stop(Store.A)
        for _ in range(3):
            assert await system.auditor.look() == 0
        assert system.auditor.ledger.counts.waiting == 1


async def test_while_one_store_is_away_the_writes_at_the_other_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait for the one that is away."""
    monkeypatch.setattr(write_auditor, "KEYS", 1)
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        await put(system, "2")
        await lend(system, "shelf/r/2", "ann")
        a, b = system.ports(Store.A), system.ports(Store.B)
        (released,) = (await a.transfers.release(["shelf/r/2"], Store.B, create=False)).results
        assert released.record is not None
        await b.transfers.apply([released.record])
        await system.stop(Store.A)
        assert [await system.auditor.look() for _ in range(2)] == [0, 1]
        assert system.auditor.ledger.counts.waiting == 1


async def test_while_the_replica_is_away_the_owner_alone_can_tell() -> None:
    async with running_system(feeds=False, mover=False) as system:
        await with_a_loan(system)
        await system.stop(Store.B)
        await looked_at(system)
        assert system.auditor.ledger.counts == LedgerCounts(1, 1)


async def test_it_invents_nothing_while_records_move_under_load() -> None:
    async with running_system() as system:
        for number in range(8):
            await put(system, str(number))
        stop = asyncio.Event()

        async def lender(reader: str) -> None:
            while not stop.is_set():
                for number in range(8):
                    await lend(system, f"shelf/r/{number}", reader)

        async def auditor() -> None:
            while not stop.is_set():
                await system.auditor.look()
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for reader in ("ann", "bob", "eve"):
                group.create_task(lender(reader))
            group.create_task(auditor())
            await go_to(system, Phase.CUTOVER)
            await eventually(lambda: system.traffic.writes[Store.B] > 50)
            stop.set()
        await looked_at(system)
        counts = system.auditor.ledger.counts
        assert counts.lost == 0
        assert counts.checked > 8


@pytest.mark.parametrize("speaks", ["", "1", "2"])
async def test_each_write_of_the_sandbox_contract_is_checked_in_the_schema_that_its_client_speaks(speaks: str) -> None:
    metadata = (("sandbox-schema-version", speaks),) if speaks else ()
    async with running_system(SANDBOXES) as system:
        client = SandboxServiceStub(system.client.grpc)
        made = await client.CreateSandbox(new("one"), metadata=metadata)
        started = sandbox_pb2.Sandbox(name=made.name, state=sandbox_pb2.Sandbox.STATE_RUNNING)
        change = UpdateSandboxRequest(sandbox=started)
        change.update_mask.paths.append("state")
        steps: tuple[tuple[Any, Any], ...] = (
            (client.UpdateSandbox, change),
            (client.AcquireLease, AcquireLeaseRequest(name=made.name, holder="ann", ttl=Duration(seconds=60))),
            (client.DeleteSandbox, DeleteSandboxRequest(name=made.name, allow_missing=True)),
            (client.UndeleteSandbox, UndeleteSandboxRequest(name=made.name)),
        )
        for call, request in steps:
            await looked_at(system)
            if call is not client.AcquireLease:
                request.validate_only = True
                await call(request, metadata=metadata)
                request.validate_only = False
            await call(request, metadata=metadata)
        await looked_at(system)
        assert system.auditor.ledger.findings == deque()
        assert system.auditor.ledger.counts == LedgerCounts(5, 5), "a call that only checks is no write"


class TestForTheOperator:
    async def test_a_lost_write_is_an_alert_blocks_the_step_and_is_listed(self) -> None:
        async with running_controlled_system(feeds=False, mover=False) as controlled:
            await with_a_loan(controlled.system)
            plant(controlled.system, Store.A, payload=b"")
            await looked_at(controlled.system)
            await controlled.flows.measurement.exchange()
            status = await controlled.control.GetStatus(pb.GetStatusRequest())
            assert "1 acknowledged writes are not in the store that owns them: baton ledger" in list(status.alerts)
            assert (status.ledger.lost, status.ledger.checked) == (1, 1)
            await go_to(controlled.system, Phase.DUAL_WRITE)
            await controlled.flows.cache.refresh()
            plan = await controlled.control.PlanPhase(pb.PlanPhaseRequest())
            assert {gate.name: gate.verdict for gate in plan.gates}["ledger"] == pb.VERDICT_FAIL
            await self.the_command_lists_it(controlled)

    async def the_command_lists_it(self, controlled: ControlledSystem) -> None:
        shown = await baton(controlled, "ledger")
        assert shown.exit_code == 1
        for word in ("CHANGED", PATH, "1 of 1 acknowledged writes lost", "A 2 (owner)"):
            assert word in shown.stdout
        view = await answer(controlled, "ledger", code=Exit.FAILED)
        help_text = (await baton(controlled, "ledger", "--help")).stdout
        for keys in (view, view["lost_writes"][0], view["lost_writes"][0]["rows"][0]):
            assert all(key in help_text for key in keys)
        assert view["lost_writes"][0]["loss"] == "CHANGED"

    async def test_without_a_lost_write_the_command_ends_well(self) -> None:
        async with running_controlled_system(feeds=False, mover=False) as controlled:
            result = await baton(controlled, "ledger")
            assert (result.exit_code, "0 of 0 acknowledged writes lost" in result.stdout) == (0, True)

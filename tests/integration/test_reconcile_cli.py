"""`baton reconcile` and `baton validate` against a running router: their output, and the gate's verdict on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.clock import ManualClock, SystemClock
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from services.router.cli.failure import Exit
from services.router.control.memory import MemoryControlStore
from services.router.core.differences import Compared, Findings
from services.router.core.evidence import Evidence
from services.router.core.jobs import JobState
from services.router.flows.jobs import reconcile_job
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.jobs.reconcile_schedule import ReconcileSchedule
from services.router.flows.jobs.runner import Jobs
from tests.commands import answer, baton
from tests.integration.test_reconcile import faults, path, rows
from tests.integration.test_router import put
from tests.integration.test_write_ledger import SANDBOXES
from tests.system.control import ControlledSystem, running_controlled_system, running_loops
from tests.system.store import new
from tests.system.whole import never_arrived
from tests.waiting import eventually

A, B = Store.A, Store.B


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    """Twelve records, the same at both stores."""
    async with running_controlled_system(mover=False) as running:
        for number in range(12):
            await put(running.system, f"{number:03}")
        await eventually(lambda: rows(running.system, A) == rows(running.system, B))
        yield running


async def test_differences_are_told_by_kind_and_the_exit_code_says_that_some_are_left(
    controlled: ControlledSystem,
) -> None:
    planted = faults(controlled.system)
    view = await answer(controlled, "reconcile", "--deep", "--yes", code=Exit.FAILED)
    report = view["report"]
    assert {one["key"]: one["kind"] for one in report["differences"]} == planted
    named = (await baton(controlled, "reconcile", "--help")).stdout
    corrupt = next(one for one in report["differences"] if one["kind"] == "CORRUPT")
    for key in [*report, *report["found"], *corrupt, *corrupt["A"]]:
        assert key in named, key
    told = await baton(controlled, "reconcile", "--corrupt", path(3), "--yes")
    assert told.exit_code == Exit.FAILED
    assert "4 of 12 records differ, 1 are repaired, 3 are left" in told.stdout
    assert "3 records differ and were not repaired" in told.stderr
    assert "two owners, or an owner that is older than its copy" in told.stdout


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "it is MISSING, not CORRUPT"),
        (4, "it is OWNER, not CORRUPT"),
        (7, "it does not differ; --deep also finds edits by hand"),
        (99, "it does not differ; --deep also finds edits by hand"),
    ],
)
async def test_a_record_that_is_named_and_is_not_corrupt_is_said_to_be_none(
    controlled: ControlledSystem, number: int, said: str
) -> None:
    faults(controlled.system)
    told = await baton(controlled, "reconcile", "--corrupt", path(number), "--yes")
    said = f"{path(number)} was not repaired as CORRUPT: {said}"
    assert said in " ".join(told.stdout.split()), told.stdout
    job = controlled.flows.jobs.latest(reconcile_job.NAME)
    assert job is not None and job.note.endswith(said)


async def test_equal_stores_pass(controlled: ControlledSystem) -> None:
    told = await baton(controlled, "reconcile", "--yes")
    assert (told.exit_code, "0 of 12 records differ" in told.stdout) == (Exit.OK, True), told.stdout


async def test_what_was_found_is_the_gates_evidence_and_an_alert(controlled: ControlledSystem) -> None:
    async def gate() -> str:
        evidence = controlled.flows.migration._evidence(controlled.flows.cache.current)
        return repr(evidence.compared and evidence.compared[1:])

    assert await gate() == "None"
    faults(controlled.system)
    await answer(controlled, "reconcile", "--yes", code=Exit.FAILED)

    async def told() -> list[str]:
        return [
            text for text in (await controlled.control.GetStatus(pb.GetStatusRequest())).alerts if "reconcile" in text
        ]

    assert await eventually(told) == ["6 of 12 records differ, 4 are not repaired: baton reconcile"]
    assert await gate() == "(12, 6, 4)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--corrupt", "sandboxes/x", "--no-repair", "--yes"], "--no-repair forbids it"),
        ([], "stdin is not a terminal"),
    ],
)
async def test_an_order_that_is_not_clear_is_refused(
    controlled: ControlledSystem, arguments: list[str], said: str
) -> None:
    told = await baton(controlled, "reconcile", *arguments)
    assert (told.exit_code, said in told.stderr) == (Exit.USAGE, True), told.stderr
    assert controlled.flows.jobs.latest(reconcile_job.NAME) is None


async def test_a_dry_run_compares_nothing(controlled: ControlledSystem) -> None:
    view = await answer(controlled, "reconcile", "--dry-run")
    assert view["dry_run"] is True and view["effects"] and controlled.flows.jobs.latest(reconcile_job.NAME) is None


async def test_validate_tells_how_far_each_store_is_behind_by_what_the_records_say() -> None:
    async with running_controlled_system(kit=SANDBOXES, mover=False) as controlled:
        client = SandboxServiceStub(controlled.system.client.grpc)
        made = [await client.CreateSandbox(new(name)) for name in ("one", "two", "three", "four")]
        await eventually(lambda: rows(controlled.system, A) == rows(controlled.system, B))
        at_b = rows(controlled.system, B)
        for sandbox, seconds in ((made[0], -90), (made[1], 30)):
            older = Sandbox.FromString(at_b[sandbox.name].payload)
            older.update_time.CopyFrom(Timestamp(seconds=older.update_time.seconds + seconds))
            at_b[sandbox.name] = replace(at_b[sandbox.name], payload=older.SerializeToString(deterministic=True))
        never_arrived(controlled.system.ports(B), made[2].name)
        report = (await answer(controlled, "validate"))["report"]
        assert [report[name] for name in ("only_in_a", "only_in_b", "different", "in_both")] == [1, 0, 2, 3]
        assert (report["b_behind"]["records"], report["a_behind"]["records"]) == (1, 1)
        assert report["b_behind"]["worst"] == made[0].name
        assert report["b_behind"]["worst_seconds"] == pytest.approx(90, abs=1.0)
        assert report["average_seconds"] == pytest.approx(-20, abs=1.0)
        told = (await baton(controlled, "validate")).stdout
        for words in ("in simple_mcp (A), not in service_layer (B)", "B behind A", "avg(B.updated - A.updated) = -"):
            assert words in told, told
        named = (await baton(controlled, "validate", "--help")).stdout
        assert all(key in named for key in [*report, *report["b_behind"]])


class Done:
    """A kind of job whose one step is its last."""

    unit = "buckets"

    def __init__(self, name: str, lane: str) -> None:
        self.name = name
        self._lane = lane

    def lane(self, arguments: Mapping[str, str]) -> str:
        return self._lane

    async def step(self, at: Position) -> Step:
        return Step(b"x", finished=True, report=Findings(records=7).to_json())


async def test_the_stores_are_compared_every_few_minutes_from_the_first_backfill_on() -> None:
    clock = ManualClock(SystemClock().now())
    kinds = (Done(reconcile_job.NAME, reconcile_job.NAME), Done("backfill", TO_B))
    jobs = Jobs(MemoryControlStore(), kinds, "router-1", SystemClock())
    reconciling = ReconcileSchedule(jobs, 300.0, clock)

    async def runs(seconds: float) -> int:
        """How many there were, so many seconds later."""
        clock.advance(seconds)
        await reconciling.look()
        await eventually(lambda: all(job.state.ended for job in jobs.view))
        return sum(job.lane == reconcile_job.NAME for job in jobs.view)

    async with running_loops(jobs.loop):
        assert await runs(10_000.0) == 0
        clock.advance(-10_000.0)
        await jobs.start("backfill", {}, "ann")
        await eventually(lambda: jobs.finished_seconds_ago(TO_B) is not None)
        assert await runs(298.0) == 0
        assert reconciling.evidence(Evidence()).compared is None
        assert await runs(4.0) == 1
        latest = jobs.latest(reconcile_job.NAME)
        assert latest is not None and (latest.state, latest.actor) == (JobState.FINISHED, "baton")
        await reconciling.look()
        seen = reconciling.evidence(Evidence()).compared
        assert seen is not None and seen == Compared(seen.seconds_ago, 7, 0, 0)

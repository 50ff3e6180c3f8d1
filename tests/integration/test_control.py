"""The control API over a running system: views, changes and refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libs.eventlog.port import Event
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.replication.v1.replication_pb2 import GetStatusResponse
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from services.router.core.jobs import Job
from services.router.core.phase import Phase
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.jobs.run import lease_of
from services.router.flows.steering.migration import Decision
from tests.system.control import ControlledSystem, running_controlled_system, running_loops
from tests.system.whole import step
from tests.waiting import eventually


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    """Without relays, apply loops and mover: only the backfill copies records."""
    async with running_controlled_system(feeds=False, mover=False) as running:
        await eventually(lambda: running.flows.observer.view(Store.B).reachable)
        yield running


async def status(controlled: ControlledSystem) -> pb.GetStatusResponse:
    return await controlled.control.GetStatus(pb.GetStatusRequest())


STEP = pb.AdvancePhaseRequest(actor="ann", to=pb.PHASE_SHADOW)


async def advance(controlled: ControlledSystem, reason: str = "a test", **fields: Any) -> pb.AdvancePhaseResponse:
    request = pb.AdvancePhaseRequest(actor="ann", reason=reason, override=True, confirm="simple_mcp")
    request.to = (await status(controlled)).setting.phase + 1  # type: ignore[assignment]
    for name, value in fields.items():
        setattr(request, name, value)
    return await controlled.control.AdvancePhase(request)


async def journal(controlled: ControlledSystem) -> list[pb.JournalEntry]:
    return list((await controlled.control.ListJournal(pb.ListJournalRequest())).entries)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    reason, found = reason_of(caught.value)
    return caught.value.code(), reason, {**found, "message": caught.value.details() or ""}


async def finished(controlled: ControlledSystem, job_id: str = "backfill-1") -> pb.Job:
    async def look() -> pb.Job | None:
        job = (await controlled.control.GetJob(pb.GetJobRequest(id=job_id))).job
        return job if job.state == pb.Job.STATE_FINISHED else None

    found = await eventually(look, what=f"{job_id} is finished")
    assert found is not None
    return found


async def start(controlled: ControlledSystem, *, to: str = "B", rate: float = 0.0) -> pb.Job:
    request = pb.StartJobRequest(actor="ann", kind="backfill", arguments={"to": to}, rate=rate)
    return (await controlled.control.StartJob(request)).job


async def test_the_status_shows_setting_stores_traffic_and_the_price_of_going_back(
    controlled: ControlledSystem,
) -> None:
    await controlled.put(3)

    async def counted() -> pb.GetStatusResponse | None:
        answer = await status(controlled)
        return answer if answer.stores[0].records == 3 else None

    answer = await eventually(counted)
    assert answer is not None
    assert (answer.setting.generation, answer.setting.phase) == (1, pb.PHASE_OFF)
    a, b = answer.stores
    assert (a.reachable, a.serving, a.owned_records, a.owned_buckets, a.writes) == (True, True, 3, 1024, 3)
    assert (b.reachable, b.records) == (True, 0)
    assert (answer.rollback_cost.records, answer.rollback_cost.seconds) == (0, 0)
    assert (answer.buckets, answer.setting_stale) == (1024, False)


async def test_a_gate_blocks_and_nothing_is_changed(controlled: ControlledSystem) -> None:
    code, reason, found = await refusal(controlled.control.AdvancePhase(STEP))
    assert (code, reason, found["verdict"]) == (grpc.StatusCode.FAILED_PRECONDITION, "GATE_BLOCKED", "FAIL")
    assert "backfill FAIL: no backfill has finished" in found["message"]
    assert (await status(controlled)).setting.generation == 1
    assert [entry.action for entry in await journal(controlled)] == ["start"]


async def test_a_gate_without_evidence_is_told_from_one_that_fails(controlled: ControlledSystem) -> None:
    await start(controlled)
    await finished(controlled)
    _, reason, found = await refusal(controlled.control.AdvancePhase(STEP))
    assert (reason, found["verdict"], found["gates"]) == ("GATE_BLOCKED", "INCONCLUSIVE", "audit")


async def test_an_override_passes_and_is_journaled_with_its_gates(controlled: ControlledSystem) -> None:
    answer = await advance(controlled, "the audit is done by hand")
    assert (answer.setting.phase, answer.setting.generation) == (pb.PHASE_SHADOW, 2)
    newest, first = await journal(controlled)
    assert (newest.action, newest.actor, newest.reason) == ("advance", "ann", "the audit is done by hand")
    assert newest.overridden is True
    assert [gate.name for gate in newest.gates] == ["audit", "backfill", "lag", "parked"]
    assert (newest.before.phase, newest.after.phase) == (pb.PHASE_OFF, pb.PHASE_SHADOW)
    assert first.action == "start"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"reason": "  "}, "reason"),
        ({"actor": ""}, "actor"),
        ({"actor": "x" * 129}, "actor"),
        ({"generation": -1}, "generation"),
    ],
)
async def test_a_decision_needs_somebody_and_an_override_a_reason(
    controlled: ControlledSystem, fields: dict[str, Any], field: str
) -> None:
    code, reason, found = await refusal(advance(controlled, **fields))
    assert (code, reason, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    assert (await status(controlled)).setting.generation == 1


async def test_a_decision_on_an_old_generation_changes_nothing(controlled: ControlledSystem) -> None:
    await advance(controlled)
    code, reason, found = await refusal(advance(controlled, generation=1, to=pb.PHASE_SHADOW))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "OUTDATED")
    assert "generation 2 (SHADOW)" in found["message"]
    assert (await status(controlled)).setting.phase == pb.PHASE_SHADOW


async def test_a_step_that_was_asked_for_twice_is_one_step(controlled: ControlledSystem) -> None:
    await advance(controlled, to=pb.PHASE_SHADOW)
    code, reason, found = await refusal(advance(controlled, to=pb.PHASE_SHADOW))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_MOVE")
    assert "SHADOW is not the next phase" in found["message"] and "the next is DUAL_WRITE" in found["message"]
    assert (await status(controlled)).setting.phase == pb.PHASE_SHADOW


async def test_a_step_must_name_its_phase(controlled: ControlledSystem) -> None:
    request = pb.AdvancePhaseRequest(actor="ann", reason="a test", override=True)
    code, _, found = await refusal(controlled.control.AdvancePhase(request))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "to")
    assert (await status(controlled)).setting.generation == 1


async def test_the_last_step_needs_a_confirmation_in_the_api_too(controlled: ControlledSystem) -> None:
    for _ in range(4):
        await advance(controlled)
    for confirm in ("", "yes", "service_layer"):
        code, _, found = await refusal(advance(controlled, confirm=confirm))
        assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "confirm")
        assert "no way back" in found["message"]
    assert (await status(controlled)).setting.phase == pb.PHASE_CUTOVER


async def test_the_last_step_is_closed_while_a_job_a_move_or_a_recovery_is_under_way(
    controlled: ControlledSystem,
) -> None:
    await controlled.put(20)
    for _ in range(4):
        await advance(controlled)
    await start(controlled, rate=1.0)
    await controlled.system.ports(Store.B).recovery.fence("it went back")
    await controlled.system.backends[Store.B].admission_loop.admit()

    async def seen() -> bool:
        plan = await controlled.control.PlanPhase(pb.PlanPhaseRequest())
        (gate,) = [gate for gate in plan.gates if gate.name == "nothing-under-way"]
        parts = ("job backfill-1 is", "buckets are on their way", "store B does not serve")
        assert gate.verdict == pb.VERDICT_FAIL and all(part in gate.evidence for part in parts), gate
        return True

    await eventually(seen)
    _, reason, found = await refusal(advance(controlled))
    assert reason == "GATE_BLOCKED" and "nothing-under-way" in found["gates"]


async def test_the_last_step_is_closed_by_no_reason_while_a_owns_something(controlled: ControlledSystem) -> None:
    for _ in range(4):
        await advance(controlled)
    _, reason, found = await refusal(advance(controlled))
    assert reason == "GATE_BLOCKED"
    assert "no override passes a-owns-nothing" in found["message"]
    assert (await status(controlled)).setting.phase == pb.PHASE_CUTOVER


async def test_canary_rollback_and_hold_are_set_shown_and_journaled(controlled: ControlledSystem) -> None:
    for _ in range(2):
        await advance(controlled)
    canary = await controlled.control.SetCanary(pb.SetCanaryRequest(actor="ann", permille=50))
    assert canary.setting.canary_permille == 50
    back = await controlled.control.RollbackPhase(pb.RollbackPhaseRequest(actor="ben", reason="fire", to=pb.PHASE_OFF))
    assert (back.setting.phase, back.setting.hold) == (pb.PHASE_OFF, True)
    assert (await status(controlled)).setting == back.setting
    plan = await controlled.control.PlanPhase(pb.PlanPhaseRequest())
    assert "lift the hold" in plan.blocked
    lifted = await controlled.control.LiftHold(pb.LiftHoldRequest(actor="ann"))
    assert lifted.setting.hold is False
    actions = [(entry.action, entry.actor) for entry in await journal(controlled)][:3]
    assert actions == [("hold lifted", "ann"), ("rollback", "ben"), ("canary", "ann")]


@pytest.mark.parametrize("to", [0, 99])
async def test_a_phase_that_does_not_exist_is_refused_with_those_that_do(controlled: ControlledSystem, to: int) -> None:
    request = pb.RollbackPhaseRequest(actor="ann", to=to)  # type: ignore[arg-type]
    code, _, found = await refusal(controlled.control.RollbackPhase(request))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "to")
    assert "PHASE_OFF, PHASE_SHADOW" in found["message"]


@pytest.mark.parametrize("permille", [-1, 1001])
async def test_a_canary_outside_its_range_is_a_bad_field(controlled: ControlledSystem, permille: int) -> None:
    code, _, found = await refusal(controlled.control.SetCanary(pb.SetCanaryRequest(actor="ann", permille=permille)))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "permille")


@pytest.mark.parametrize("limit", [-1, 1001])
async def test_a_journal_of_no_size_is_a_bad_field(controlled: ControlledSystem, limit: int) -> None:
    code, _, found = await refusal(controlled.control.ListJournal(pb.ListJournalRequest(limit=limit)))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "limit")


async def test_a_move_that_the_table_does_not_have_is_illegal(controlled: ControlledSystem) -> None:
    request = pb.RollbackPhaseRequest(actor="ann", to=pb.PHASE_CUTOVER)
    code, reason, _ = await refusal(controlled.control.RollbackPhase(request))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_MOVE")


async def test_while_the_control_store_is_away_the_last_setting_is_shown_and_nothing_can_change(
    controlled: ControlledSystem,
) -> None:
    await advance(controlled)
    controlled.store.reachable = False
    code, reason, _ = await refusal(advance(controlled))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "CONTROL_UNAVAILABLE")
    answer = await status(controlled)
    assert (answer.setting.phase, answer.setting_stale) == (pb.PHASE_SHADOW, True)
    controlled.store.reachable = True

    async def fresh() -> bool:
        return not (await status(controlled)).setting_stale

    await eventually(fresh)


async def test_a_change_made_at_another_router_is_seen_here(controlled: ControlledSystem) -> None:
    before = controlled.flows.cache.current
    # The system's own migration has a cache of its own, as another router has.
    await step(controlled.system.migration, Decision("ben", "because", override=True))
    after = await controlled.flows.cache.changed(before, 10.0)
    assert after.phase is Phase.SHADOW


async def test_a_store_that_is_away_is_shown_and_closes_the_gates_that_need_it(controlled: ControlledSystem) -> None:
    await eventually(lambda: controlled.flows.observer.view(Store.A).lag_seconds == 0.0)
    await controlled.system.stop(Store.B)
    await eventually(lambda: not controlled.flows.observer.view(Store.B).reachable)
    await eventually(lambda: controlled.flows.observer.view(Store.A).lag_seconds is None)
    answer = await status(controlled)
    assert (answer.stores[1].reachable, answer.stores[1].serving) == (False, False)
    assert answer.stores[1].note
    assert (answer.stores[0].reachable, answer.stores[0].HasField("lag_seconds")) == (True, False)
    plan = await controlled.control.PlanPhase(pb.PlanPhaseRequest())
    verdicts = {gate.name: gate.verdict for gate in plan.gates}
    assert verdicts["lag"] == pb.VERDICT_INCONCLUSIVE


async def test_events_that_no_feed_reads_are_lag_and_none_when_they_are_read() -> None:
    async with running_controlled_system(feeds=False, mover=False) as controlled:
        await controlled.system.log.append([Event("r/1", b"x"), Event("r/2", b"x")])
        view = controlled.flows.observer.view
        await eventually(lambda: view(Store.A).lag_events == 2 and (view(Store.A).lag_seconds or 0) > 0)
        async with running_loops(*(backend.feed.loop for backend in controlled.system.backends.values())):
            await eventually(lambda: view(Store.A).lag_events == 0 and view(Store.A).lag_seconds == 0.0)
            parked = await eventually(lambda: (view(Store.A).status or GetStatusResponse()).feed.parked_now)
            assert parked == 2


async def test_a_log_that_is_away_is_shown_and_the_lag_is_not_known(controlled: ControlledSystem) -> None:
    controlled.system.log.reachable = False

    async def unknown() -> pb.GetStatusResponse | None:
        answer = await status(controlled)
        return answer if not any(store.HasField("lag_events") for store in answer.stores) else None

    answer = await eventually(unknown)
    assert answer is not None
    assert "unavailable" in answer.log_trouble
    assert not any(store.HasField("lag_seconds") for store in answer.stores)


async def test_a_backfill_copies_every_record_of_a_and_opens_its_gate(controlled: ControlledSystem) -> None:
    await controlled.put(450)
    await start(controlled)
    job = await finished(controlled)
    assert (job.done, job.total, job.unit) == (450, 450, "records")
    assert await controlled.records_at(Store.B) == 450
    plan = await controlled.control.PlanPhase(pb.PlanPhaseRequest())
    assert {gate.name: gate.verdict for gate in plan.gates}["backfill"] == pb.VERDICT_PASS


async def test_the_mirror_copies_what_b_has_to_a_and_opens_no_gate(controlled: ControlledSystem) -> None:
    for _ in range(3):
        await advance(controlled)
    await controlled.system.setting.refresh()
    await controlled.put(5)
    at_a, at_b = (controlled.system.ports(store).inspection for store in Store)

    async def same() -> list[bool]:
        pairs = zip(await at_a.digests(), await at_b.digests(), strict=True)
        return [one.digest == other.digest for one, other in pairs]

    assert not any(await same()), "A knows no more than that it gave these names away"
    job = await start(controlled, to="A")
    assert (await finished(controlled, job.id)).lane == "backfill to A"
    assert all(await same())
    assert controlled.flows.jobs.finished_seconds_ago(TO_B) is None


async def test_a_backfill_waits_for_a_store_that_does_not_serve_and_says_why(controlled: ControlledSystem) -> None:
    await controlled.put(5)
    controlled.system.backends[Store.B].serving.stop("it is being repaired")
    await start(controlled)

    async def waits() -> bool:
        (job,) = (await status(controlled)).jobs
        return job.state == pb.Job.STATE_RUNNING and "it is being repaired" in job.waits

    await eventually(waits)
    controlled.system.backends[Store.B].serving.serve()
    assert (await finished(controlled)).waits == ""
    assert await controlled.records_at(Store.B) == 5


async def test_a_job_is_paused_tuned_and_resumed_where_it_stopped(controlled: ControlledSystem) -> None:
    await controlled.put(6)
    job = await start(controlled, rate=1)

    async def some() -> bool:
        return (await status(controlled)).jobs[0].done >= 1

    await eventually(some)
    paused = pb.ChangeJobRequest(actor="ben", id=job.id, action=pb.ChangeJobRequest.ACTION_PAUSE)
    assert (await controlled.control.ChangeJob(paused)).job.state == pb.Job.STATE_PAUSED
    code, reason, _ = await refusal(controlled.control.ChangeJob(paused))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_STATE")

    async def given_up() -> bool:
        return await controlled.store.lease(lease_of(job.id), "router-9", 60.0)

    await eventually(given_up, what="its runner has left it")
    copied = (await controlled.control.GetJob(pb.GetJobRequest(id=job.id))).job.done
    assert (await controlled.records_at(Store.B), copied < 6) == (copied, True)
    await controlled.store.lease(lease_of(job.id), "router-9", 0.0)
    tune = pb.ChangeJobRequest(actor="ben", id=job.id, action=pb.ChangeJobRequest.ACTION_TUNE)
    assert (await controlled.control.ChangeJob(tune)).job.wanted_rate == 0.0
    resume = pb.ChangeJobRequest(actor="ben", id=job.id, action=pb.ChangeJobRequest.ACTION_RESUME)
    await controlled.control.ChangeJob(resume)
    assert (await finished(controlled)).done == 6
    assert await controlled.records_at(Store.B) == 6


async def test_a_cancelled_backfill_begins_anew(controlled: ControlledSystem) -> None:
    await controlled.put(3)
    job = await start(controlled, rate=1)
    cancel = pb.ChangeJobRequest(actor="ben", id=job.id, action=pb.ChangeJobRequest.ACTION_CANCEL)
    answer = (await controlled.control.ChangeJob(cancel)).job
    assert (answer.state, answer.note) == (pb.Job.STATE_CANCELLED, "cancelled by ben")
    again = await start(controlled)
    assert again.id != job.id
    assert (await finished(controlled, again.id)).done == 3


async def test_who_asks_again_finds_the_job_that_is_under_way(controlled: ControlledSystem) -> None:
    await controlled.put(3)
    first = await start(controlled, rate=1)
    assert (await start(controlled, rate=1)).id == first.id
    assert (await start(controlled, to="A")).id != first.id
    jobs = (await controlled.control.ListJobs(pb.ListJobsRequest())).jobs
    assert sorted(job.lane for job in jobs) == ["backfill to A", "backfill to B"]


async def test_a_job_that_nobody_runs_is_run_by_a_router_that_starts(controlled: ControlledSystem) -> None:
    await controlled.put(3)
    await controlled.store.add(Job("backfill", "backfill to B", "ann", {"to": "B"}))
    await finished(controlled)
    assert await controlled.records_at(Store.B) == 3


@pytest.mark.parametrize("rate", [-1.0, 0.5, float("inf"), float("nan"), 1e7])
async def test_a_rate_that_makes_no_sense_is_a_bad_field(controlled: ControlledSystem, rate: float) -> None:
    code, _, found = await refusal(start(controlled, rate=rate))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "rate")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.StartJobRequest(kind="backfill"), "actor"),
        (pb.StartJobRequest(actor="ann", kind="nonsense"), "kind"),
        (pb.StartJobRequest(actor="ann", kind="backfill", arguments={"to": "C"}), "to"),
        (pb.StartJobRequest(actor="ann", kind="backfill", arguments={"from": "A"}), "arguments"),
    ],
)
async def test_a_job_that_makes_no_sense_is_refused(
    controlled: ControlledSystem, request_: pb.StartJobRequest, field: str
) -> None:
    code, _, found = await refusal(controlled.control.StartJob(request_))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_orders_for_a_job_that_is_not_there_or_that_mean_nothing_are_refused(
    controlled: ControlledSystem,
) -> None:
    code, reason, _ = await refusal(controlled.control.GetJob(pb.GetJobRequest(id="backfill-7")))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    code, _, found = await refusal(controlled.control.ChangeJob(pb.ChangeJobRequest(actor="ann", id="backfill-7")))
    assert (code, found["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "action")


async def test_the_control_listener_asks_for_its_token() -> None:
    async with running_controlled_system(token=b"x" * 20, feeds=False, mover=False) as controlled:
        code, reason, _ = await refusal(controlled.control.GetStatus(pb.GetStatusRequest()))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REFUSED")
        await controlled.control.GetStatus(pb.GetStatusRequest(), metadata=((metadata.TOKEN, "x" * 20),))


async def test_the_doctor_finds_a_healthy_system_and_says_what_is_missing(controlled: ControlledSystem) -> None:
    answer = await controlled.control.Diagnose(pb.DiagnoseRequest())
    found = {finding.subject: finding for finding in answer.findings}
    for subject in ("store A", "store B", "clock of store A", "event log"):
        assert found[subject].level == pb.Finding.LEVEL_PASS, found[subject]
    assert found["control store"].level == pb.Finding.LEVEL_WARN
    assert found["operators"].remedy
    await controlled.system.stop(Store.A)
    controlled.system.log.reachable = False
    answer = await controlled.control.Diagnose(pb.DiagnoseRequest())
    failed = {finding.subject for finding in answer.findings if finding.level == pb.Finding.LEVEL_FAIL}
    assert failed == {"store A", "event log"}
    assert all(finding.remedy for finding in answer.findings if finding.level != pb.Finding.LEVEL_PASS)

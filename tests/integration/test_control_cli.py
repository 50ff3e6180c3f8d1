"""`baton` against a running router: output, changes and exit codes."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.cli.client import control
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Common
from services.router.core.phase import Phase
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        await eventually(
            lambda: running.flows.observer.evidence(running.flows.cache.current, None, None).lag_seconds == 0
        )
        yield running


async def copied(controlled: ControlledSystem) -> None:
    await controlled.flows.jobs.start("backfill", {"to": "B"}, "ann")
    await eventually(lambda: controlled.flows.jobs.finished_seconds_ago(TO_B) is not None)


async def go_to(controlled: ControlledSystem, phase: Phase) -> None:
    while controlled.flows.cache.current.phase is not phase:
        await step(controlled.flows.migration, BY_HAND)
    await controlled.system.setting.refresh()


async def test_status_prints_every_key_that_its_help_names(controlled: ControlledSystem) -> None:
    view = await answer(controlled, "status")
    named = (await baton(controlled, "status", "--help")).stdout
    assert (view["phase"], view["generation"], view["canary_percent"], view["hold"]) == ("OFF", 1, 0.0, False)
    for keys in (view, view["stores"]["A"], view["handover"], view["rollback_cost"]):
        for key in keys:
            assert key.split(".")[0] in named, key
    assert view["stores"]["A"]["lag_seconds"] == 0.0


async def test_status_is_a_table_for_people(controlled: ControlledSystem) -> None:
    text = (await baton(controlled, "status")).stdout
    for words in ("OFF (generation 1)", "buckets at B", "handover", "never ran", "rollback", "serves"):
        assert words in text, text


async def test_a_failing_gate_blocks_with_3_and_shows_the_gates(controlled: ControlledSystem) -> None:
    for command in (["phase", "plan"], ["phase", "advance", "SHADOW", "--yes"]):
        result = await baton(controlled, *command)
        assert result.exit_code == Exit.BLOCKED
        assert "these gates do not pass: audit, backfill" in result.stderr
        assert "no backfill has finished" in result.stdout
    assert controlled.flows.cache.current.generation == 1


async def test_a_gate_without_evidence_blocks_with_4(controlled: ControlledSystem) -> None:
    await copied(controlled)
    plan = await answer(controlled, "phase", "plan", code=Exit.INCONCLUSIVE)
    assert (plan["next"], {gate["name"]: gate["verdict"] for gate in plan["gates"]}["audit"]) == (
        "SHADOW",
        "INCONCLUSIVE",
    )
    assert (await baton(controlled, "phase", "advance", "shadow", "--yes")).exit_code == Exit.INCONCLUSIVE


async def test_an_override_advances_and_the_journal_shows_it(controlled: ControlledSystem) -> None:
    now = await answer(controlled, "phase", "advance", "SHADOW", "--override", "audited by hand", "--yes")
    assert (now["phase"], now["generation"], now["before"]["phase"], now["dry_run"]) == ("SHADOW", 2, "OFF", False)
    newest, first = (await answer(controlled, "journal"))["entries"]
    assert (newest["actor"], newest["action"], newest["reason"]) == ("ann@host", "advance", "audited by hand")
    assert newest["overridden"] is True
    assert first["action"] == "start"
    text = (await baton(controlled, "journal", "--limit", "1")).stdout
    assert "audited by hand [overrides audit, backfill]" in text
    assert "start" not in text


async def test_another_phase_than_the_next_is_refused_and_the_last_one_needs_a_name(
    controlled: ControlledSystem,
) -> None:
    for phase in ("OFF", "DUAL_WRITE", "CUTOVER"):
        refused = await baton(controlled, "phase", "advance", phase, "--override", "x", "--yes")
        assert refused.exit_code == Exit.FAILED
        assert f"{phase} is not the next phase" in refused.stderr and "the next is SHADOW" in refused.stderr
    last = await baton(controlled, "phase", "advance", "DEPRECATED", "--override", "x", "--yes")
    assert (last.exit_code, "--confirm simple_mcp" in last.stderr) == (Exit.USAGE, True)
    assert controlled.flows.cache.current.generation == 1


@pytest.mark.parametrize(
    "command",
    [
        ["phase", "advance", "DUAL_READ", "--override", "by hand"],
        ["phase", "rollback", "off"],
        ["canary", "set", "5"],
        ["backfill"],
    ],
)
async def test_a_dry_run_changes_nothing_and_a_script_needs_yes(
    controlled: ControlledSystem, command: list[str]
) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    before = controlled.flows.cache.current
    assert (await answer(controlled, *command, "--dry-run"))["dry_run"] is True
    result = await baton(controlled, *command)
    assert result.exit_code == Exit.USAGE
    assert "add --yes" in result.stderr
    assert await controlled.store.load() == before
    assert await controlled.store.jobs() == []
    assert (await baton(controlled, *command, "--yes")).exit_code == Exit.OK


async def test_a_rollback_says_its_price_before_it_acts(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_READ)
    await controlled.put(3)
    await eventually(lambda: _owned_at_b(controlled) == 3)
    result = await baton(controlled, "phase", "rollback", "OFF", "--reason", "fire", "--dry-run")
    assert "3 records to move back to A, no rate was measured yet" in result.stderr
    assert "all traffic is held at A" in result.stderr
    now = await answer(controlled, "phase", "rollback", "OFF", "--reason", "fire", "--yes")
    cost = now["rollback_cost"]
    assert (now["phase"], now["hold"]) == ("OFF", True)
    assert (cost["possible"], cost["records"], cost["seconds"], cost["writes_lost"]) == (True, 3, None, 0)


def _owned_at_b(controlled: ControlledSystem) -> int:
    status = controlled.flows.observer.view(Store.B).status
    return status.owned_records if status else 0


async def test_the_hold_is_lifted_and_only_once(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.SHADOW)
    await controlled.flows.migration.rollback(BY_HAND, Phase.OFF)
    blocked = await baton(controlled, "phase", "advance", "SHADOW", "--yes")
    assert (blocked.exit_code, "baton hold lift" in blocked.stderr) == (Exit.FAILED, True)
    assert (await answer(controlled, "hold", "lift", "--yes"))["hold"] is False
    again = await baton(controlled, "hold", "lift", "--yes")
    assert (again.exit_code, "no hold to lift" in again.stderr) == (Exit.FAILED, True)


async def test_a_canary_is_set_in_its_phase_and_refused_elsewhere(controlled: ControlledSystem) -> None:
    refused = await baton(controlled, "canary", "set", "5", "--yes")
    assert (refused.exit_code, "steers only in DUAL_WRITE" in refused.stderr) == (Exit.FAILED, True)
    await go_to(controlled, Phase.DUAL_WRITE)
    now = await answer(controlled, "canary", "set", "12.5%", "--yes")
    assert (now["canary_percent"], now["before"]["canary_percent"]) == (12.5, 0.0)
    assert controlled.flows.cache.current.canary_permille == 125


async def test_a_backfill_can_be_waited_for(controlled: ControlledSystem) -> None:
    await controlled.put(7)
    view = await answer(controlled, "backfill", "--wait", "--yes")
    assert (view["state"], view["done"], view["note"]) == ("FINISHED", 7, "7 records copied")
    assert await controlled.records_at(Store.B) == 7
    assert "backfill-1: FINISHED; 7 of 7 records" in (await baton(controlled, "status")).stdout


async def test_jobs_are_listed_shown_paused_tuned_resumed_and_cancelled(controlled: ControlledSystem) -> None:
    assert "there are no jobs" in (await baton(controlled, "jobs")).stdout
    await controlled.put(5)
    started = await answer(controlled, "backfill", "--rate", "1", "--yes")
    named = (await baton(controlled, "jobs", "show", "--help")).stdout
    for key in started:
        assert key in (*named.split(), "dry_run", "effects"), key
    job_id = started["id"]
    paused = await answer(controlled, "jobs", "pause", job_id, "--yes")
    assert (paused["state"], paused["note"], paused["wanted_rate"]) == ("PAUSED", "paused by ann@host", 1.0)
    assert "paused by ann@host" in (await baton(controlled, "jobs")).stdout
    waiting = await baton(controlled, "backfill", "--rate", "1", "--wait", "--yes")
    assert (waiting.exit_code, "PAUSED, paused by ann@host" in waiting.stderr) == (Exit.FAILED, True)
    tuned = await answer(controlled, "jobs", "tune", job_id, "rate=0", "--yes")
    assert (tuned["state"], tuned["wanted_rate"]) == ("PAUSED", None)
    assert (await answer(controlled, "jobs", "cancel", job_id, "--dry-run"))["state"] == "PAUSED"
    await answer(controlled, "jobs", "resume", job_id, "--yes")
    await eventually(lambda: controlled.flows.jobs.finished_seconds_ago(TO_B) is not None)
    refused = await baton(controlled, "jobs", "cancel", job_id, "--yes")
    assert refused.exit_code == Exit.FAILED
    assert (
        f"{job_id} is FINISHED, but cancel needs a job that is QUEUED or RUNNING or PAUSED or FAILED" in refused.stderr
    )
    (listed,) = (await answer(controlled, "jobs"))["jobs"]
    assert (listed["state"], listed["done"], listed["eta_seconds"]) == ("FINISHED", 5, 0.0)
    assert "backfill to B" in (await baton(controlled, "jobs", "show", job_id)).stdout
    assert "there is no job 'nonsense'" in (await baton(controlled, "jobs", "show", "nonsense")).stderr


async def test_the_doctor_passes_a_healthy_system_and_fails_a_broken_one(controlled: ControlledSystem) -> None:
    found = (await answer(controlled, "doctor"))["findings"]
    assert {finding["subject"] for finding in found} >= {"router", "clock of the router", "store A", "event log"}
    await controlled.system.stop(Store.B)
    result = await baton(controlled, "doctor")
    assert result.exit_code == Exit.FAILED
    assert "checks failed" in result.stderr
    assert "store B" in result.stdout


async def test_the_token_is_shown_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret-of-twenty-byte\n")
    async with running_controlled_system(token=b"secret-of-twenty-byte", feeds=False, mover=False) as controlled:
        refused = await baton(controlled, "status")
        assert (refused.exit_code, "--token-file" in refused.stderr) == (Exit.REFUSED, True)
        assert (await baton(controlled, "status", "--token-file", str(path))).exit_code == Exit.OK


async def test_a_gate_that_closes_after_the_plan_has_the_same_exit_codes(controlled: ControlledSystem) -> None:
    def advance() -> Exit:
        with control(Common(address=controlled.address)) as router, pytest.raises(CommandFailed) as caught:
            router.call("AdvancePhase", pb.AdvancePhaseRequest(actor="ann", to=pb.PHASE_SHADOW))
        return caught.value.code

    assert await asyncio.to_thread(advance) is Exit.BLOCKED
    await copied(controlled)
    assert await asyncio.to_thread(advance) is Exit.INCONCLUSIVE


async def test_the_journal_names_the_flag_and_its_value(controlled: ControlledSystem) -> None:
    name = controlled.system.switches.names.everything
    await answer(controlled, "flags", "set", name, "false", "--reason", "try", "--yes")
    (newest, _) = (await answer(controlled, "journal"))["entries"]
    assert newest["changes"] == [f"flag {name} = false (was unset)"]
    assert f"flag {name} = false (was unset)" in (await baton(controlled, "journal")).stdout


async def test_a_rollback_says_that_canary_and_shadow_become_0(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await controlled.flows.migration.set_canary(BY_HAND, 500)
    await controlled.flows.migration.set_shadow(BY_HAND, 100)
    plan = await answer(controlled, "phase", "rollback", "OFF", "--dry-run")
    assert {"also: canary 50 % -> 0 %", "also: shadow 10 % -> 0 %"} <= set(plan["effects"])
    assert (plan["dry_run"], plan["canary_percent"], plan["shadow_percent"]) == (True, 0.0, 0.0)


async def test_clients_that_call_directly_or_with_an_old_version_are_listed(controlled: ControlledSystem) -> None:
    assert "no client calls a store directly" in (await baton(controlled, "clients")).stdout
    await controlled.put(1)
    assert await answer(controlled, "clients") == {"clients": []}


async def test_each_change_is_one_line_in_the_log_with_actor_and_reason(
    controlled: ControlledSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await controlled.put(5)
    await go_to(controlled, Phase.DUAL_WRITE)
    name = controlled.system.switches.names.everything
    orders = [
        (["canary", "set", "5"], "canary by ann@host: canary 0 % -> 5 %; reason: why"),
        (["flags", "set", name, "true"], f"flag by ann@host: flag {name} = true (was unset); reason: why"),
        (["rollback", "OFF"], "rollback by ann@host: phase DUAL_WRITE -> OFF; canary 5 % -> 0 %; hold set: all"),
        (["hold", "lift"], "hold lifted by ann@host: hold lifted; reason: why"),
        (
            ["phase", "advance", "SHADOW", "--override", "why"],
            "advance by ann@host: phase OFF -> SHADOW; overrides audit",
        ),
        (["backfill", "--rate", "1"], "job requested by ann@host; reason: why (backfill: to B)"),
        (["jobs", "pause", "backfill-1"], "job paused by ann@host; reason: why (backfill-1)"),
    ]
    for order, line in orders:
        await answer(controlled, *order, "--reason", "why", "--yes")
        assert sum(line in record.getMessage() for record in caplog.records) == 1, line
    messages = [record.getMessage() for record in caplog.records if "job backfill-1" in record.getMessage()]
    assert messages[0] == "job backfill-1 is QUEUED (requested by ann@host): requested by ann@host"
    assert "job backfill-1 is PAUSED (requested by ann@host): paused by ann@host" in messages


async def test_a_limit_changes_at_once_and_is_journaled(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    change = ["gates", "set", "gate_error_calls=7", "rollback_automatic=false"]
    assert "--reason is required" in (await baton(controlled, *change, "--yes")).stderr
    plan = await answer(controlled, *change, "--reason", "thin traffic", "--dry-run")
    assert (plan["dry_run"], plan["effects"][0]) == (True, "limit gate_error_calls = 7 (was unset)")
    assert (await controlled.store.load()).limits == ()
    now = await answer(controlled, *change, "--reason", "thin traffic", "--yes")
    assert now["limits"] == {"gate_error_calls": 7.0, "rollback_automatic": 0.0}
    gates = {gate["name"]: gate for gate in (await answer(controlled, "phase", "plan", code=Exit.BLOCKED))["gates"]}
    assert gates["error-rate"]["least_samples"] == 7
    newest = (await answer(controlled, "journal", "--limit", "1"))["entries"][0]
    assert (newest["action"], newest["actor"], newest["reason"]) == ("limits", "ann@host", "thin traffic")
    assert newest["changes"][0] == "limit gate_error_calls = 7 (was unset)"
    listed = {limit["name"]: limit for limit in (await answer(controlled, "gates"))["limits"]}
    assert (listed["gate_error_calls"]["value"], listed["gate_error_calls"]["usual"]) == (7.0, 600.0)
    assert "7 (set)" in (await baton(controlled, "gates")).stdout
    assert "gate_error_calls 7" in (await baton(controlled, "status")).stdout
    now = await answer(controlled, "gates", "unset", "gate_error_calls", "--reason", "enough now", "--yes")
    assert now["limits"] == {"rollback_automatic": 0.0}
    for wrong in (["gates", "set", "gate_error_calls=many"], ["gates", "set", "nonsense=1"], ["gates", "unset", "x"]):
        assert (await baton(controlled, *wrong, "--reason", "r", "--yes")).exit_code == Exit.USAGE


async def test_the_status_says_since_when_and_by_whom_and_what_to_look_at(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.SHADOW)

    async def phase_is_known() -> bool:
        return bool((await answer(controlled, "status"))["phase_actor"] == "ann")

    await eventually(phase_is_known)
    view = await answer(controlled, "status")
    assert (view["phase_actor"], view["phase_reason"]) == ("ann", "by hand")
    assert view["phase_seconds"] < 60 and [one["name"] for one in view["routers"]] == ["router-1"]
    await controlled.system.stop(Store.B)
    await eventually(lambda: not controlled.flows.observer.view(Store.B).reachable)
    view = await answer(controlled, "status")
    assert any(alert.startswith("store B is unreachable") for alert in view["alerts"]), view["alerts"]
    assert "look at this" in (await baton(controlled, "status")).stdout


async def test_a_watch_into_a_pipe_prints_lines_and_says_when_there_is_no_router(controlled: ControlledSystem) -> None:
    words = [sys.executable, "-c", "import sys; from services.router.cli import main; main()", "status", "--watch"]
    process = await asyncio.create_subprocess_exec(
        *words, "--address", controlled.address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert " OFF (generation 1) | " in (await process.stdout.readline()).decode()
            await controlled.server.drain(0.1)
            while "no router answers at" not in (line := (await process.stdout.readline()).decode()):
                assert line, "the watch has ended"
    finally:
        process.kill()
        await process.wait()


async def test_an_event_of_a_bare_id_is_refused_with_the_form_of_a_name(controlled: ControlledSystem) -> None:
    result = await baton(controlled, "events", "show", "load-1")
    assert (result.exit_code, "the log holds no event load-1" in result.stderr) == (Exit.FAILED, True)
    assert "a record's name, shelf/.../..." in result.stderr


async def test_an_operator_sees_and_switches_the_principal_of_served_requests(controlled: ControlledSystem) -> None:
    async def in_force() -> bool:
        return bool((await answer(controlled, "identity", "status"))["in_force"])

    await eventually(lambda: answers_of_both(controlled))
    shown = await answer(controlled, "identity", "status")
    assert (shown["serves_subjects"], shown["obstacles"]) == (False, [])
    assert [process["name"] for process in shown["processes"]] == ["router router-1", "store A", "store B"]
    planned = await answer(controlled, "identity", "switch", "--to", "subjects", "--dry-run")
    assert planned["dry_run"] and "requests served under anonymous -> subjects" in planned["effects"]
    assert not controlled.flows.cache.current.serves_subjects
    now = await answer(controlled, "identity", "switch", "--to", "subjects", "--reason", "tokens everywhere", "--yes")
    assert now["serves_subjects"] and not now["before"]["serves_subjects"]
    await eventually(in_force, 30)
    (newest,) = (await answer(controlled, "journal", "--limit", "1"))["entries"]
    assert (newest["action"], newest["reason"]) == ("identity", "tokens everywhere")
    assert newest["changes"] == ["requests served under anonymous -> subjects"]
    text = (await baton(controlled, "identity", "status")).stdout
    assert "served requests: subjects, in force at every process" in text
    await controlled.system.stop(Store.B)
    assert (await answer(controlled, "identity", "switch", "--to", "anonymous", "--yes"))["serves_subjects"] is False
    await eventually(lambda: not controlled.flows.observer.processes.of(Store.B), 30)
    refused = await baton(controlled, "identity", "switch", "--to", "subjects", "--yes")
    assert (refused.exit_code, "store B does not answer" in refused.stderr) == (Exit.FAILED, True)
    assert "no switch to subjects: store B does not answer" in (await baton(controlled, "identity", "status")).stdout


def answers_of_both(controlled: ControlledSystem) -> bool:
    return all(controlled.flows.observer.processes.of(store) for store in Store) and controlled.flows.measurement.fresh

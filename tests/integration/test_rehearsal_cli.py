"""`baton canary auto`, `rehearse`, `rollback` and `chaos flip` against a running router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.ownership.model import Store
from services.router.cli.failure import Exit
from services.router.control.port import JournalEntry
from services.router.core.canary import EXAMPLE
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
CREATE = "toy.routing.create_shelf_use_service_layer"


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system() as running:
        await eventually(lambda: running.flows.observer.view(Store.B).reachable)
        yield running


async def go_to(controlled: ControlledSystem, phase: Phase) -> None:
    while controlled.flows.cache.current.phase is not phase:
        await step(controlled.flows.migration, BY_HAND)
    await eventually(lambda: controlled.flows.mover.settled, 20.0)


def plan(directory: Path, text: str) -> str:
    path = directory / "plan.toml"
    path.write_text(text)
    return str(path)


async def test_a_plan_is_walked_and_the_canary_shows_set_and_actual_share(
    controlled: ControlledSystem, tmp_path: Path
) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await controlled.put(20)
    file = plan(tmp_path, '[[step]]\npercent = 10\ngates = ["parked"]\n[[step]]\npercent = 50\n')
    view = await answer(controlled, "canary", "auto", file, "--wait", "--yes")
    assert (view["running"], view["step"], view["steps"]) == (False, 2, 2)
    assert view["note"].startswith("done")
    shown = await answer(controlled, "canary", "show")
    assert (shown["phase"], shown["set_percent"], shown["actual_percent"]) == ("DUAL_WRITE", 50, 50)
    assert shown["settled"] is True
    assert shown["calls_percent"] is not None
    text = (await baton(controlled, "canary", "show")).stdout
    assert "set     50 % in DUAL_WRITE" in text
    assert "50 % of the buckets" in text
    assert "ended at step 2 of 2; done" in text


async def test_the_example_is_accepted_and_a_dry_run_starts_nothing(
    controlled: ControlledSystem, tmp_path: Path
) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    printed = await baton(controlled, "canary", "auto", "--example")
    assert printed.stdout == EXAMPLE
    result = await baton(controlled, "canary", "auto", plan(tmp_path, printed.stdout), "--dry-run")
    assert (result.exit_code, "0 % -> 5 % -> 10 % -> 50 % -> 100 %" in result.stderr) == (Exit.OK, True)
    assert await controlled.store.jobs() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[step]]\nprocent = 5", "step 1: procent: 5 is not valid: unknown key; allowed are percent"),
        ("[[step]]\npercent = 101", "step 1: percent: 101 is not valid: 0.1 to 100"),
        ("[[step]]\npercent = 5\ngates = ['none']", "step 1: gates: 'none' is not valid: a list of names out of audit"),
        ("on_fail = 1\n[[step]]\npercent = 5", 'on_fail: 1 is not valid: one of "back", "hold"'),
    ],
)
async def test_a_wrong_plan_is_refused_and_nothing_changes(
    controlled: ControlledSystem, tmp_path: Path, text: str, said: str
) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    before = controlled.flows.cache.current
    result = await baton(controlled, "canary", "auto", plan(tmp_path, text), "--yes")
    assert (result.exit_code, said in result.stderr) == (Exit.USAGE, True), result.stderr
    assert await controlled.store.load() == before
    assert await controlled.store.jobs() == []


@pytest.mark.parametrize(
    "arguments", [[], ["--stop", "--wait"], ["no-such-plan.toml"], ["--stop", "plan.toml"]], ids=" ".join
)
async def test_a_walk_needs_one_plan_or_its_end(controlled: ControlledSystem, arguments: list[str]) -> None:
    assert (await baton(controlled, "canary", "auto", *arguments, "--yes")).exit_code == Exit.USAGE


async def test_a_walk_is_stopped_by_hand_and_only_once(controlled: ControlledSystem, tmp_path: Path) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    file = plan(tmp_path, "[[step]]\npercent = 10\nminimum_samples = 1000000\n")
    assert (await answer(controlled, "canary", "auto", file, "--yes"))["running"] is True
    another = plan(tmp_path, "[[step]]\npercent = 20\n")
    again = await baton(controlled, "canary", "auto", another, "--yes")
    assert (again.exit_code, "baton jobs cancel canary-auto-1" in again.stderr) == (Exit.FAILED, True)
    stopped = await answer(controlled, "canary", "auto", "--stop", "--yes", "--reason", "lunch")
    assert (stopped["running"], stopped["note"]) == (False, "cancelled by ann@host")
    assert (await controlled.flows.migration.journal(1))[0].reason == "lunch (canary-auto-1)"
    gone = await baton(controlled, "canary", "auto", "--stop", "--yes")
    assert (gone.exit_code, "no walk is under way" in gone.stderr) == (Exit.FAILED, True)


async def test_a_rehearsal_is_typed_and_told(controlled: ControlledSystem) -> None:
    await controlled.put(10)
    refused = await baton(controlled, "rehearse", "--buckets", "2", "--yes")
    assert (refused.exit_code, "the phase is OFF" in refused.stderr) == (Exit.FAILED, True)
    await go_to(controlled, Phase.DUAL_READ)
    assert (await baton(controlled, "rehearse", "--buckets", "65", "--yes")).exit_code == Exit.USAGE
    assert (await answer(controlled, "rehearse", "--buckets", "2", "--dry-run"))["dry_run"] is True
    view = await answer(controlled, "rehearse", "--buckets", "2", "--yes")
    assert (view["passed"], len(view["buckets"]), view["errors"], view["dry_run"]) == (True, 2, 0, False)
    assert view["records"] >= 2
    shown = await answer(controlled, "jobs", "show", "rehearsal-1")
    assert (shown["state"], shown["report"]["passed"], shown["note"][:7]) == ("FINISHED", True, "passed:")
    planned = await answer(controlled, "phase", "plan", code=Exit.INCONCLUSIVE)
    verdicts = {gate["name"]: gate["verdict"] for gate in planned["gates"]}
    assert verdicts["rehearsal"] == "PASS"


async def test_one_operation_goes_back_while_the_others_stay(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_READ)
    before = controlled.flows.cache.current
    assert (await answer(controlled, "rollback", "--op", "create", "--dry-run"))["dry_run"] is True
    assert controlled.flows.cache.current == before
    view = await answer(controlled, "rollback", "--op", "create", "--reason", "B makes bad ones", "--yes")
    assert (view["flag"], view["value"], view["phase"]) == (CREATE, False, "DUAL_READ")
    await eventually(lambda: controlled.flows.cache.flags.operations == {"create": False})
    newest = (await controlled.flows.migration.journal(1))[0]
    assert (newest.actor, newest.reason) == ("ann@host", "B makes bad ones")
    await controlled.put(1)
    assert controlled.system.traffic.writes[Store.A] == 1
    assert (await answer(controlled, "rollback", "--op", "create", "--undo", "--yes"))["value"] is None
    await eventually(lambda: not controlled.flows.cache.flags.operations)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "baton rollback OFF"),
        (["--op", "erase"], "'erase' is not valid: one of create, get, list, update"),
        (["OFF", "--op", "create"], "name one of them"),
        (["OFF", "--undo"], "baton hold lift"),
        (["BACK"], "one of OFF, SHADOW"),
    ],
)
async def test_a_rollback_that_is_not_clear_is_refused_with_what_is(
    controlled: ControlledSystem, arguments: list[str], said: str
) -> None:
    result = await baton(controlled, "rollback", *arguments, "--yes")
    assert (result.exit_code, said in result.stderr) == (Exit.USAGE, True), result.stderr


async def test_a_rollback_with_a_phase_is_that_of_the_phases(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    view = await answer(controlled, "rollback", "OFF", "--yes")
    assert (view["phase"], view["hold"]) == ("OFF", True)


async def test_a_storm_is_shown_dry_and_puts_everything_back(controlled: ControlledSystem) -> None:
    await go_to(controlled, Phase.DUAL_WRITE)
    await controlled.flows.migration.set_canary(BY_HAND, 100)
    await controlled.flows.migration.set_flag(BY_HAND, CREATE, True)
    before = controlled.flows.cache.current
    storm = ["chaos", "flip", "--every", "50ms", "--for", "1s", "--seed", "3"]
    dry = await answer(controlled, *storm, "--dry-run")
    assert (dry["dry_run"], len(dry["flips"])) == (True, 20)
    assert await controlled.store.load() == before
    assert (await baton(controlled, *storm)).exit_code == Exit.USAGE
    report = await answer(controlled, *storm, "--yes")
    assert (report["ok"], report["problems"]) == (True, [])
    assert sum(report["flips"].values()) > 0
    assert (report["lost"], report["calls"]) == (None, None), "what was not judged is not zero"
    after = await controlled.store.load()
    assert (after.phase, after.canary_permille, after.hold) == (Phase.DUAL_WRITE, 100, False)
    assert after.flags == before.flags
    assert "DEPRECATED" not in {entry.after.phase.value for entry in await controlled.flows.migration.journal(100)}


async def test_no_storm_where_there_is_no_way_back(controlled: ControlledSystem) -> None:
    before = await controlled.store.load()
    last = replace(before, generation=before.generation + 1, phase=Phase.DEPRECATED)
    assert await controlled.store.change(JournalEntry(0.0, "ann", "advance", "", before, last))
    result = await baton(controlled, "chaos", "flip", "--every", "50ms", "--for", "100ms", "--yes")
    assert (result.exit_code, "no way back" in result.stderr) == (Exit.FAILED, True)
    assert await controlled.store.load() == last

"""`baton canary auto`, `rehearse`, `rollback` and `chaos flip` against a running router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.ownership.model import Store
from services.router.cli.options import Exit
from services.router.control.port import JournalEntry
from services.router.core.canary import EXAMPLE
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.panel import Panel, running_panel
from tests.system import step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
CREATE = "toy.routing.create_shelf_use_service_layer"


@pytest.fixture
async def panel() -> AsyncIterator[Panel]:
    async with running_panel() as running:
        await eventually(lambda: running.flows.observer.view(Store.B).reachable)
        yield running


async def go_to(panel: Panel, phase: Phase) -> None:
    while panel.flows.cache.current.phase is not phase:
        await step(panel.flows.migration, BY_HAND)
    await eventually(lambda: panel.flows.mover.settled, 20.0)


def plan(directory: Path, text: str) -> str:
    path = directory / "plan.toml"
    path.write_text(text)
    return str(path)


async def test_a_plan_is_walked_and_the_canary_shows_set_and_actual_share(panel: Panel, tmp_path: Path) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await panel.put(20)
    file = plan(tmp_path, '[[step]]\npercent = 10\ngates = ["parked"]\n[[step]]\npercent = 50\n')
    view = await answer(panel, "canary", "auto", file, "--wait", "--yes")
    assert (view["running"], view["step"], view["steps"]) == (False, 2, 2)
    assert view["note"].startswith("done")
    shown = await answer(panel, "canary", "show")
    assert (shown["phase"], shown["set_percent"], shown["actual_percent"]) == ("DUAL_WRITE", 50, 50)
    assert shown["settled"] is True
    assert shown["calls_percent"] is not None
    text = (await baton(panel, "canary", "show")).stdout
    assert "set     50 % in DUAL_WRITE" in text
    assert "50 % of the buckets" in text
    assert "ended at step 2 of 2; done" in text


async def test_the_example_is_accepted_and_a_dry_run_starts_nothing(panel: Panel, tmp_path: Path) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    printed = await baton(panel, "canary", "auto", "--example")
    assert printed.stdout == EXAMPLE
    result = await baton(panel, "canary", "auto", plan(tmp_path, printed.stdout), "--dry-run")
    assert (result.exit_code, "0 % -> 5 % -> 10 % -> 50 % -> 100 %" in result.stderr) == (Exit.OK, True)
    assert await panel.store.jobs() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[step]]\nprocent = 5", "step 1: procent: 5 is not valid: there is no such key; allowed are percent"),
        ("[[step]]\npercent = 101", "step 1: percent: 101 is not valid: 0.1 to 100"),
        ("[[step]]\npercent = 5\ngates = ['none']", "step 1: gates: 'none' is not valid: a list of names out of audit"),
        ("on_fail = 1\n[[step]]\npercent = 5", 'on_fail: 1 is not valid: one of "back", "hold"'),
    ],
)
async def test_a_wrong_plan_is_refused_and_nothing_changes(panel: Panel, tmp_path: Path, text: str, said: str) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    before = panel.flows.cache.current
    result = await baton(panel, "canary", "auto", plan(tmp_path, text), "--yes")
    assert (result.exit_code, said in result.stderr) == (Exit.USAGE, True), result.stderr
    assert await panel.store.load() == before
    assert await panel.store.jobs() == []


@pytest.mark.parametrize(
    "arguments", [[], ["--stop", "--wait"], ["no-such-plan.toml"], ["--stop", "plan.toml"]], ids=" ".join
)
async def test_a_walk_needs_one_plan_or_its_end(panel: Panel, arguments: list[str]) -> None:
    assert (await baton(panel, "canary", "auto", *arguments, "--yes")).exit_code == Exit.USAGE


async def test_a_walk_is_stopped_by_hand_and_only_once(panel: Panel, tmp_path: Path) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    file = plan(tmp_path, "[[step]]\npercent = 10\nminimum_samples = 1000000\n")
    assert (await answer(panel, "canary", "auto", file, "--yes"))["running"] is True
    another = plan(tmp_path, "[[step]]\npercent = 20\n")
    again = await baton(panel, "canary", "auto", another, "--yes")
    assert (again.exit_code, "baton jobs cancel canary-auto-1" in again.stderr) == (Exit.FAILED, True)
    stopped = await answer(panel, "canary", "auto", "--stop", "--yes", "--reason", "lunch")
    assert (stopped["running"], stopped["note"]) == (False, "cancelled by ann@host")
    assert (await panel.flows.migration.journal(1))[0].reason == "lunch (canary-auto-1)"
    gone = await baton(panel, "canary", "auto", "--stop", "--yes")
    assert (gone.exit_code, "no walk is under way" in gone.stderr) == (Exit.FAILED, True)


async def test_a_rehearsal_is_typed_and_told(panel: Panel) -> None:
    await panel.put(10)
    refused = await baton(panel, "rehearse", "--buckets", "2", "--yes")
    assert (refused.exit_code, "the phase is OFF" in refused.stderr) == (Exit.FAILED, True)
    await go_to(panel, Phase.DUAL_READ)
    assert (await baton(panel, "rehearse", "--buckets", "65", "--yes")).exit_code == Exit.USAGE
    assert (await answer(panel, "rehearse", "--buckets", "2", "--dry-run"))["dry_run"] is True
    view = await answer(panel, "rehearse", "--buckets", "2", "--yes")
    assert (view["passed"], len(view["buckets"]), view["errors"], view["dry_run"]) == (True, 2, 0, False)
    assert view["records"] >= 2
    shown = await answer(panel, "jobs", "show", "rehearsal-1")
    assert (shown["state"], shown["report"]["passed"], shown["note"][:7]) == ("FINISHED", True, "passed:")
    planned = await answer(panel, "phase", "plan", code=Exit.INCONCLUSIVE)
    verdicts = {gate["name"]: gate["verdict"] for gate in planned["gates"]}
    assert verdicts["rehearsal"] == "PASS"


async def test_one_operation_goes_back_while_the_others_stay(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_READ)
    before = panel.flows.cache.current
    assert (await answer(panel, "rollback", "--op", "create", "--dry-run"))["dry_run"] is True
    assert panel.flows.cache.current == before
    view = await answer(panel, "rollback", "--op", "create", "--reason", "B makes bad ones", "--yes")
    assert (view["flag"], view["value"], view["phase"]) == (CREATE, False, "DUAL_READ")
    await eventually(lambda: panel.flows.cache.flags.operations == {"create": False})
    newest = (await panel.flows.migration.journal(1))[0]
    assert (newest.actor, newest.reason) == ("ann@host", "B makes bad ones")
    await panel.put(1)
    assert panel.system.traffic.writes[Store.A] == 1
    assert (await answer(panel, "rollback", "--op", "create", "--undo", "--yes"))["value"] is None
    await eventually(lambda: not panel.flows.cache.flags.operations)


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
    panel: Panel, arguments: list[str], said: str
) -> None:
    result = await baton(panel, "rollback", *arguments, "--yes")
    assert (result.exit_code, said in result.stderr) == (Exit.USAGE, True), result.stderr


async def test_a_rollback_with_a_phase_is_that_of_the_phases(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    view = await answer(panel, "rollback", "OFF", "--yes")
    assert (view["phase"], view["hold"]) == ("OFF", True)


async def test_a_storm_is_shown_dry_and_puts_everything_back(panel: Panel) -> None:
    await go_to(panel, Phase.DUAL_WRITE)
    await panel.flows.migration.set_canary(BY_HAND, 100)
    await panel.flows.migration.set_flag(BY_HAND, CREATE, True)
    before = panel.flows.cache.current
    storm = ["chaos", "flip", "--every", "50ms", "--for", "1s", "--seed", "3"]
    dry = await answer(panel, *storm, "--dry-run")
    assert (dry["dry_run"], len(dry["flips"])) == (True, 20)
    assert await panel.store.load() == before
    assert (await baton(panel, *storm)).exit_code == Exit.USAGE
    report = await answer(panel, *storm, "--yes")
    assert (report["ok"], report["problems"]) == (True, [])
    assert sum(report["flips"].values()) >= 10
    assert (report["lost"], report["calls"]) == (None, None), "what was not judged is not zero"
    after = await panel.store.load()
    assert (after.phase, after.canary_permille, after.hold) == (Phase.DUAL_WRITE, 100, False)
    assert after.flags == before.flags
    assert "DEPRECATED" not in {entry.after.phase.value for entry in await panel.flows.migration.journal(100)}


async def test_no_storm_where_there_is_no_way_back(panel: Panel) -> None:
    before = await panel.store.load()
    last = replace(before, generation=before.generation + 1, phase=Phase.DEPRECATED)
    assert await panel.store.change(JournalEntry(0.0, "ann", "advance", "", before, last))
    result = await baton(panel, "chaos", "flip", "--every", "50ms", "--for", "100ms", "--yes")
    assert (result.exit_code, "no way back" in result.stderr) == (Exit.FAILED, True)
    assert await panel.store.load() == last

"""The table of phases: every move, legal or not."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from libs.ownership.model import Store
from services.router.core.diagram import diagram, guarantees
from services.router.core.gates import GATES
from services.router.core.gates.webhook import WEBHOOK
from services.router.core.phase import (
    CANARY_FULL,
    ORDER,
    PHASES,
    IllegalMove,
    Phase,
    Setting,
    advance,
    lift_hold,
    next_phase,
    rollback,
    set_canary,
    set_shadow,
)

OFF, SHADOW, DUAL_WRITE, DUAL_READ, CUTOVER, DEPRECATED = Phase

LEGAL_BACK = {
    (SHADOW, OFF),
    (DUAL_WRITE, OFF),
    (DUAL_WRITE, SHADOW),
    (DUAL_WRITE, DUAL_WRITE),  # Keeps the phase, takes the canary back.
    (DUAL_READ, OFF),
    (DUAL_READ, SHADOW),
    (DUAL_READ, DUAL_WRITE),
    (CUTOVER, OFF),
    (CUTOVER, SHADOW),
    (CUTOVER, DUAL_WRITE),
    (CUTOVER, DUAL_READ),
}


def at(phase: Phase, canary_permille: int = 0, *, hold: bool = False) -> Setting:
    return Setting(generation=7, phase=phase, canary_permille=canary_permille, hold=hold)


@pytest.mark.parametrize(("before", "after"), list(itertools.pairwise(Phase)))
def test_a_step_forward_enters_the_next_phase_with_the_canary_at_0(before: Phase, after: Phase) -> None:
    assert next_phase(at(before)) is after
    assert advance(at(before, 300 if PHASES[before].canary else 0), after) == Setting(8, after, 0, False)


def test_after_the_last_phase_there_is_no_step() -> None:
    with pytest.raises(IllegalMove, match="DEPRECATED is the last phase"):
        advance(at(DEPRECATED), DEPRECATED)


@pytest.mark.parametrize(("now", "wanted"), list(itertools.pairwise(Phase)))
def test_a_step_forward_that_names_another_phase_than_the_next_is_refused(now: Phase, wanted: Phase) -> None:
    for to in set(Phase) - {wanted}:
        with pytest.raises(IllegalMove, match=f"{to.value} is not the next phase: .*the next is {wanted.value}"):
            advance(at(now), to)


@pytest.mark.parametrize("phase", Phase)
def test_while_traffic_is_held_there_is_no_step_forward(phase: Phase) -> None:
    with pytest.raises(IllegalMove):
        advance(at(phase, hold=True), SHADOW)


@pytest.mark.parametrize(("before", "to"), list(itertools.product(Phase, Phase)))
def test_a_way_back_is_legal_exactly_where_the_table_says(before: Phase, to: Phase) -> None:
    setting = at(before)
    if (before, to) in LEGAL_BACK:
        after = rollback(setting, to)
        assert after == Setting(8, to, 0, hold=to in {OFF, SHADOW, DUAL_WRITE})
    else:
        with pytest.raises(IllegalMove):
            rollback(setting, to)
    assert setting == at(before), "a setting is never changed in place"


@pytest.mark.parametrize("phase", [OFF, SHADOW, DUAL_WRITE])
def test_going_back_to_a_phase_that_writes_to_a_takes_the_canary_and_holds(phase: Phase) -> None:
    assert PHASES[phase].home is Store.A
    after = rollback(at(CUTOVER), phase)
    assert (after.hold, after.canary_permille) == (True, 0)


def test_going_back_to_dual_read_holds_nothing() -> None:
    assert rollback(at(CUTOVER), DUAL_READ).hold is False


def test_a_held_canary_phase_cannot_be_rolled_back_into_itself_again() -> None:
    with pytest.raises(IllegalMove, match="not before"):
        rollback(at(DUAL_WRITE, hold=True), DUAL_WRITE)


def test_from_deprecated_no_way_leads_back() -> None:
    for phase in Phase:
        with pytest.raises(IllegalMove, match="no way back"):
            rollback(at(DEPRECATED), phase)


@pytest.mark.parametrize("phase", Phase)
def test_a_canary_is_set_only_where_it_steers(phase: Phase) -> None:
    if phase is DUAL_WRITE:
        assert set_canary(at(phase), 51) == Setting(8, phase, 51, False)
    else:
        with pytest.raises(IllegalMove, match="steers only in DUAL_WRITE"):
            set_canary(at(phase), 51)


@pytest.mark.parametrize("permille", [-1, 1001])
def test_a_canary_outside_its_range_is_refused(permille: int) -> None:
    with pytest.raises(IllegalMove, match=r"0 to 100 %, in steps of 0\.1 %"):
        set_canary(at(DUAL_WRITE), permille)


@pytest.mark.parametrize("permille", [0, 1, CANARY_FULL])
def test_the_ends_of_the_range_are_in_it(permille: int) -> None:
    assert set_canary(at(DUAL_WRITE), permille).canary_permille == permille


def test_under_a_hold_a_canary_can_only_be_set_to_0() -> None:
    held = at(DUAL_WRITE, hold=True)
    assert set_canary(held, 0).hold is True
    with pytest.raises(IllegalMove, match="lift the hold"):
        set_canary(held, 1)


def test_a_hold_is_lifted_once() -> None:
    lifted = lift_hold(at(SHADOW, hold=True))
    assert lifted == Setting(8, SHADOW, 0, False)
    with pytest.raises(IllegalMove, match="no hold"):
        lift_hold(lifted)


def test_after_a_rollback_the_way_forward_is_open_once_the_hold_is_lifted() -> None:
    setting = lift_hold(rollback(at(CUTOVER), OFF))
    for phase in ORDER[1:]:
        setting = advance(setting, next_phase(setting))
        assert setting.phase is phase


def test_the_table_names_known_gates_and_every_gate_is_asked_somewhere() -> None:
    asked = {name for rule in PHASES.values() for name in rule.gates}
    assert asked | {WEBHOOK} == set(GATES), "a setting says where the webhook decides"


@pytest.mark.parametrize("phase", Phase)
def test_reads_are_compared_only_where_both_stores_are_fed_and_neither_is_left(phase: Phase) -> None:
    if phase in {SHADOW, DUAL_WRITE, DUAL_READ}:
        after = set_shadow(at(phase), 51, same=True)
        assert after == replace(at(phase), generation=8, shadow_permille=51, shadow_same=True, shadow_since=8)
    else:
        with pytest.raises(IllegalMove, match="compared only in SHADOW, DUAL_WRITE, DUAL_READ"):
            set_shadow(at(phase), 51)
    assert set_shadow(at(phase), 0, same=True) == replace(at(phase), generation=8, shadow_since=8)


@pytest.mark.parametrize("permille", [-1, 1001])
def test_more_than_all_reads_cannot_be_compared(permille: int) -> None:
    with pytest.raises(IllegalMove, match="0 to 100 %"):
        set_shadow(at(SHADOW), permille)


def test_the_share_of_compared_reads_is_kept_until_a_phase_that_compares_none() -> None:
    setting = set_shadow(at(SHADOW), 10)
    for kept in (DUAL_WRITE, DUAL_READ):
        setting = advance(setting, next_phase(setting))
        assert (setting.phase, setting.shadow_permille, setting.shadow_since) == (kept, 10, 8)
    assert rollback(setting, SHADOW).shadow_permille == 10, "with what was counted: it is the same run"
    assert (rollback(setting, OFF).shadow_permille, advance(setting, next_phase(setting)).shadow_permille) == (0, 0)


def test_only_the_last_phase_has_no_way_back() -> None:
    assert [phase for phase in Phase if not PHASES[phase].way_back] == [DEPRECATED]


def test_the_diagram_shows_every_step_and_every_way_back() -> None:
    lines = diagram().splitlines()
    arrows = {tuple(line.split(":")[0].split(" --> ")) for line in (line.strip() for line in lines) if "-->" in line}
    forward = {(before.value, after.value) for before, after in itertools.pairwise(Phase)}
    back = {(before.value, to.value) for before, to in LEGAL_BACK if before is not to}
    assert arrows == forward | back | {("[*]", "OFF"), ("DEPRECATED", "[*]")}
    assert lines[0] == "stateDiagram-v2"


def test_the_documents_show_the_diagram_and_the_guarantees_of_the_table() -> None:
    root = Path(__file__).parents[2]
    assert diagram() in (root / "docs" / "phases.md").read_text()
    assert guarantees() in (root / "README.md").read_text()

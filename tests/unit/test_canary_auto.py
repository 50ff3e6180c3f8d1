"""Canary plans as operators write them, and the next step of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.clock import ManualClock
from libs.errors import InvalidField
from services.router.core.canary import (
    EXAMPLE,
    WALK_GATES,
    Action,
    CanaryPlan,
    Observation,
    OnFail,
    Step,
    Walked,
    begin,
    decide,
    parse_plan,
)
from services.router.core.gates import GateResult, Verdict
from services.router.core.phase import IllegalMove, Outdated, Phase, Setting
from services.router.flows.jobs.canary import CanaryAuto, Walk
from services.router.flows.jobs.kind import Position
from services.router.flows.steering.migration import Decision

PLAN = CanaryPlan((Step(50, 10.0, 100, ("lag",)), Step(1000, 20.0, 0, ())), patience_seconds=60.0)
AT_FIRST = Setting(generation=3, phase=Phase.DUAL_WRITE, canary_permille=50)
PASSED = Walked(0, 10.0, 100)


def gate(verdict: Verdict) -> GateResult:
    return GateResult("lag", "Both stores are close.", verdict, "the worse lag is 9 s", "at most 1 s")


def seen(verdict: Verdict = Verdict.PASS, *, settled: bool = True, setting: Setting = AT_FIRST) -> Observation:
    return Observation(setting, settled, (gate(verdict),))


def test_the_example_is_a_plan_that_walks_5_10_50_100() -> None:
    plan = parse_plan(EXAMPLE)
    assert [step.percent for step in plan.steps] == [5, 10, 50, 100]
    assert all(step.gates and step.minimum_seconds and step.minimum_samples for step in plan.steps)
    assert plan.on_fail is OnFail.BACK


def test_what_is_left_out_of_a_plan_asks_for_nothing() -> None:
    assert parse_plan("[[step]]\npercent = 0.1") == CanaryPlan((Step(1),))


@pytest.mark.parametrize(
    ("text", "field", "allowed"),
    [
        ("[[step]\n", "plan", "--example"),
        ("on_fial = 'back'\n[[step]]\npercent = 5", "on_fial", "on_fail, patience_seconds, step"),
        ("on_fail = 'panic'\n[[step]]\npercent = 5", "on_fail", '"back", "hold"'),
        ("patience_seconds = -1\n[[step]]\npercent = 5", "patience_seconds", "seconds, 0 to"),
        ("patience_seconds = true\n[[step]]\npercent = 5", "patience_seconds", "seconds, 0 to"),
        ("patience_seconds = nan\n[[step]]\npercent = 5", "patience_seconds", "seconds, 0 to"),
        ("on_fail = 'back'", "step", "1 to 100 tables"),
        ("step = 5", "step", "1 to 100 tables"),
        ("step = [5]", "step 1", "percent, minimum_seconds, minimum_samples, gates"),
        ("[[step]]\nminimum_seconds = 1", "step 1: percent", "0.1 to 100"),
        ("[[step]]\npercent = 0", "step 1: percent", "0.1 to 100, in steps of 0.1"),
        ("[[step]]\npercent = 100.1", "step 1: percent", "0.1 to 100"),
        ("[[step]]\npercent = 5.05", "step 1: percent", "steps of 0.1"),
        ("[[step]]\npercent = '5'", "step 1: percent", "0.1 to 100"),
        ("[[step]]\npercent = inf", "step 1: percent", "0.1 to 100"),
        ("[[step]]\npercent = 10\n[[step]]\npercent = 10", "step 2: percent", "more than 10 to 100"),
        ("[[step]]\npercent = 5\nprocent = 5", "step 1: procent", "minimum_samples"),
        ("[[step]]\npercent = 5\nminimum_seconds = 'long'", "step 1: minimum_seconds", "seconds, 0 to"),
        ("[[step]]\npercent = 5\nminimum_samples = 1.5", "step 1: minimum_samples", "a whole number"),
        ("[[step]]\npercent = 5\nminimum_samples = -1", "step 1: minimum_samples", "a whole number"),
        ("[[step]]\npercent = 5\ngates = 'lag'", "step 1: gates", "error-rate"),
        ("[[step]]\npercent = 5\ngates = ['lagg']", "step 1: gates", "error-rate"),
        ("[[step]]\npercent = 5\ngates = ['canary-complete']", "step 1: gates", "error-rate"),
        ("#" * 20_000, "plan", "16384 characters"),
    ],
)
def test_a_wrong_plan_is_refused_naming_key_value_and_what_is_allowed(text: str, field: str, allowed: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_plan(text)
    assert caught.value.field == field
    assert allowed in caught.value.expected


def test_every_gate_that_can_pass_during_a_walk_may_be_named() -> None:
    names = ", ".join(f'"{name}"' for name in WALK_GATES)
    assert parse_plan(f"[[step]]\npercent = 5\ngates = [{names}]").steps[0].gates == WALK_GATES


@pytest.mark.parametrize(("permille", "step"), [(0, 0), (50, 0), (51, 1), (1000, 1)])
def test_a_walk_begins_at_the_first_step_that_takes_nothing_back(permille: int, step: int) -> None:
    assert begin(PLAN, replace(AT_FIRST, canary_permille=permille)) == step


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (Setting(1, Phase.SHADOW), "steers only in DUAL_WRITE; the phase is SHADOW"),
        (Setting(1, Phase.DUAL_WRITE, 0, hold=True), "lift the hold first"),
    ],
)
def test_a_walk_is_refused_where_no_canary_steers(setting: Setting, why: str) -> None:
    with pytest.raises(IllegalMove, match=why):
        begin(PLAN, setting)


def test_a_walk_that_would_only_take_back_is_refused() -> None:
    with pytest.raises(IllegalMove, match="at 6 % and the plan ends at 5 %"):
        begin(CanaryPlan((Step(50),)), replace(AT_FIRST, canary_permille=60))


def test_a_step_that_has_all_it_asks_for_leads_to_the_next() -> None:
    said = decide(PLAN, PASSED, seen())
    assert (said.action, said.permille) == (Action.ADVANCE, 1000)
    assert "5 % is proved by 100 calls in 10 s" in said.reason


def test_the_last_step_ends_the_walk() -> None:
    at_last = Observation(replace(AT_FIRST, canary_permille=1000), True, ())
    assert decide(PLAN, Walked(1, 20.0, 0), at_last).action is Action.DONE
    assert decide(PLAN, Walked(1, 19.9, 0), at_last).action is Action.HOLD


@pytest.mark.parametrize(
    ("place", "at", "why"),
    [
        (replace(PASSED, seconds=9.9), seen(), "10 of 10 s"),
        (replace(PASSED, samples=99), seen(), "99 of 100 calls"),
        (PASSED, seen(settled=False), "still moving"),
        (PASSED, seen(Verdict.INCONCLUSIVE), "lag INCONCLUSIVE: the worse lag is 9 s (wanted: at most 1 s)"),
    ],
)
def test_a_step_is_held_until_nothing_is_missing(place: Walked, at: Observation, why: str) -> None:
    said = decide(PLAN, place, at)
    assert (said.action, said.permille) == (Action.HOLD, None)
    assert why in said.reason


def test_a_gate_that_fails_takes_the_canary_back_at_once() -> None:
    said = decide(PLAN, Walked(0), seen(Verdict.FAIL, settled=False))
    assert (said.action, said.permille) == (Action.BACK, 0)
    assert "at 5 % lag FAIL: the worse lag is 9 s" in said.reason


def test_a_plan_that_holds_waits_for_the_gate_and_then_gives_up() -> None:
    plan = replace(PLAN, on_fail=OnFail.HOLD)
    assert decide(plan, Walked(0, 70.0, 0), seen(Verdict.FAIL)).action is Action.HOLD
    said = decide(plan, Walked(0, 70.1, 0), seen(Verdict.FAIL))
    assert (said.action, said.permille) == (Action.STOP, None)
    assert "patience ended at 5 %" in said.reason


def test_patience_ends_a_walk_only_while_something_is_missing() -> None:
    assert decide(PLAN, Walked(0, 1000.0, 99), seen()).action is Action.STOP
    assert decide(PLAN, Walked(0, 1000.0, 100), seen()).action is Action.ADVANCE


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (replace(AT_FIRST, phase=Phase.DUAL_READ), "the phase was changed to DUAL_READ"),
        (replace(AT_FIRST, hold=True), "held at A"),
        (replace(AT_FIRST, canary_permille=70), "the canary was set to 7 %"),
    ],
)
def test_what_somebody_else_sets_ends_the_walk_and_stays(setting: Setting, why: str) -> None:
    said = decide(PLAN, PASSED, seen(Verdict.FAIL, setting=setting))
    assert (said.action, said.permille) == (Action.STOP, None)
    assert why in said.reason


def test_flags_and_rehearsals_do_not_disturb_a_walk() -> None:
    changed = replace(AT_FIRST, generation=9, rehearsal=(1, 2))
    assert decide(PLAN, PASSED, seen(setting=changed)).action is Action.ADVANCE


def test_time_and_calls_count_while_one_run_watches() -> None:
    walk = Walk(0, 5.0, 7).watched("one", 100.0, {"router-1": 40, "router-2": 9})
    assert (walk.seconds, walk.samples) == (5.0, 7), "before its first look a run has seen nothing"
    # router-1 was restarted, router-3 came.
    walk = walk.watched("one", 102.5, {"router-1": 3, "router-2": 19, "router-3": 50})
    assert (walk.seconds, walk.samples) == (7.5, 17)
    walk = Walk.decode(walk.encode()).watched("two", 500.0, {"router-2": 99})
    assert (walk.seconds, walk.samples) == (7.5, 17), "what passed between two runs counts for nothing"
    walk = walk.watched("two", 501.0, {"router-2": 100})
    assert (walk.seconds, walk.samples) == (8.5, 18)


def test_a_step_begins_with_no_time_and_no_calls() -> None:
    entering = Walk(1, 5.0, 7, entering_from=50, run="one", watched_at=3.0, counts={"router-1": 4})
    assert entering.entered() == Walk(1, run="one", watched_at=3.0, counts={"router-1": 4})


class Steering:
    """A setting that others change after each look at it."""

    generation = 7

    async def refresh(self) -> Setting:
        self.generation += 1
        return Setting(self.generation - 1, Phase.DUAL_WRITE)

    async def set_canary(self, decision: Decision, permille: int) -> Setting:
        if decision.generation not in (0, self.generation):
            raise Outdated
        return Setting(self.generation, Phase.DUAL_WRITE, permille)


async def test_a_walk_changes_no_setting_that_it_has_not_seen() -> None:
    steering = Steering()
    kind = CanaryAuto(steering, steering, dict, lambda: True, ManualClock())  # type: ignore[arg-type]
    at = Position({"plan": "[[step]]\npercent = 5"}, Walk(0, entering_from=0, run="one").encode(), 1, run="one")
    step = await kind.step(at)
    assert (step.waits, Walk.decode(step.checkpoint).entering_from) == (
        "the setting was changed concurrently; reading it again",
        0,
    )


async def test_a_walk_that_cannot_begin_any_more_ends_and_says_why() -> None:
    kind = CanaryAuto(Steering(), Steering(), dict, lambda: True, ManualClock())  # type: ignore[arg-type]
    at = Position({"plan": "[[step]]\npercent = 5"}, b"", 1, run="one")
    assert not (await kind.step(at)).finished
    kind = CanaryAuto(Steering(), Held(), dict, lambda: True, ManualClock())  # type: ignore[arg-type]
    step = await kind.step(at)
    assert (step.finished, step.note.partition(": ")[0]) == (True, "stopped")


class Held(Steering):
    async def refresh(self) -> Setting:
        return Setting(7, Phase.DUAL_WRITE, hold=True)

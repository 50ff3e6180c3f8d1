"""The canary walk: an operator's plan, by which the canary grows in steps. Pure.

Rule: `decide` chooses the next action from the walk's state and an observation: hold, advance, back, done or stop, each
with a reason. The walk acts on a failing gate at once. It waits for an inconclusive gate, but no longer than the plan's
patience. If an operator or an automatic rollback changes the canary, the phase or the hold, the walk ends and leaves
the change as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from libs.errors import InvalidField
from libs.text import parse_toml, plain
from services.router.core.gates import GATES, GateResult, Verdict
from services.router.core.gates.webhook import WEBHOOK
from services.router.core.phase import CANARY_FULL, PHASES, IllegalMove, Setting

MAX_PLAN_CHARACTERS = 16_384
MAX_STEPS = 100
MAX_SECONDS = 30 * 86_400.0
MAX_SAMPLES = 1_000_000_000
DEFAULT_PATIENCE_SECONDS = 3600.0

_NEVER_DURING_A_WALK = frozenset({"canary-complete", "buckets-done", "a-owns-nothing", WEBHOOK})
WALK_GATES = tuple(name for name in GATES if name not in _NEVER_DURING_A_WALK)
"""Gates that a step may name. The others cannot pass before the walk is done, or are about the next phase."""

EXAMPLE = """\
# A canary that grows by itself: baton canary auto plan.toml
#
# It walks the steps in their order, in DUAL_WRITE. A step ends when its minimum time has passed, B has answered its
# minimum of calls, every bucket has arrived, and each of its gates passes.

# What a gate that fails does: "back" takes the canary to 0 % and ends the walk, "hold" waits for it to pass.
on_fail = "back"

# How long a step may wait beyond its minimum time. Then the walk ends and the canary stays where it is.
patience_seconds = 3600

[[step]]
percent = 5             # of the buckets, 0.1 to 100, more than the step before
minimum_seconds = 300   # at least so long at this step
minimum_samples = 1000  # at least so many calls answered by B at this step
gates = ["error-rate", "lag", "parked"]

[[step]]
percent = 10
minimum_seconds = 600
minimum_samples = 5000
gates = ["error-rate", "lag", "parked"]

[[step]]
percent = 50
minimum_seconds = 1800
minimum_samples = 20000
gates = ["error-rate", "shadow-consistent", "lag", "parked"]

[[step]]
percent = 100
minimum_seconds = 3600
minimum_samples = 50000
gates = ["error-rate", "shadow-consistent", "lag", "parked"]
"""


class OnFail(Enum):
    BACK = "back"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Step:
    permille: int
    minimum_seconds: float = 0.0
    minimum_samples: int = 0
    """Calls that B answered while the walk was at this step."""
    gates: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        return self.permille / 10


@dataclass(frozen=True, slots=True)
class CanaryPlan:
    steps: tuple[Step, ...]
    on_fail: OnFail = OnFail.BACK
    patience_seconds: float = DEFAULT_PATIENCE_SECONDS


class Action(Enum):
    HOLD = "hold"
    ADVANCE = "advance"
    BACK = "back"
    DONE = "done"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Walked:
    """The state of a walk: its step, its time at the step, and the calls that B has answered there."""

    step: int
    seconds: float = 0.0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    setting: Setting
    settled: bool
    """Each bucket is at the store that the setting assigns."""
    gates: tuple[GateResult, ...]
    """Results of the gates of the walk's step."""


class Next(NamedTuple):
    action: Action
    reason: str
    permille: int | None = None
    """The new canary, in thousandths; None: unchanged."""


def begin(plan: CanaryPlan, setting: Setting) -> int:
    """Index of the first step: the first one that is not below the current canary. Raises IllegalMove."""
    if not setting.rule.canary:
        raise IllegalMove(f"a canary steers only in {_canary_phases()}; the phase is {setting.phase.value}")
    if setting.hold:
        raise IllegalMove("all traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    for number, step in enumerate(plan.steps):
        if step.permille >= setting.canary_permille:
            return number
    raise IllegalMove(
        f"the canary is at {plain(setting.canary_permille / 10)} % and the plan ends at"
        f" {plain(plan.steps[-1].percent)} %: add a higher step to the plan"
    )


def decide(plan: CanaryPlan, walked: Walked, seen: Observation) -> Next:
    """The next action."""
    step = plan.steps[walked.step]
    if disturbed := _disturbed(step, seen.setting):
        return Next(Action.STOP, disturbed)
    failing = [gate for gate in seen.gates if gate.verdict is Verdict.FAIL]
    if failing and plan.on_fail is OnFail.BACK:
        return Next(Action.BACK, f"at {plain(step.percent)} % {_shown(failing)}", 0)
    if waiting := _waiting(step, walked, seen):
        if walked.seconds > step.minimum_seconds + plan.patience_seconds:
            return Next(Action.STOP, f"patience ended at {plain(step.percent)} %: {waiting}")
        return Next(Action.HOLD, f"at {plain(step.percent)} %: {waiting}")
    if walked.step + 1 == len(plan.steps):
        return Next(Action.DONE, f"the canary is at {plain(step.percent)} %, the plan's last step, and its gates pass")
    following = plan.steps[walked.step + 1]
    return Next(
        Action.ADVANCE,
        f"{plain(step.percent)} % is proved by {walked.samples} calls in {walked.seconds:.0f} s",
        following.permille,
    )


def _disturbed(step: Step, setting: Setting) -> str:
    """Reason why the walk no longer controls the canary; "" if it does."""
    if not setting.rule.canary:
        return f"the phase was changed to {setting.phase.value}"
    if setting.hold:
        return "all traffic is held at A since a rollback"
    if setting.canary_permille != step.permille:
        now = plain(setting.canary_permille / 10)
        return f"the canary was set to {now} %, the walk was at {plain(step.percent)} %"
    return ""


def _waiting(step: Step, walked: Walked, seen: Observation) -> str:
    """The condition for which the step waits; "" if it waits for none."""
    open_gates = [gate for gate in seen.gates if gate.verdict is not Verdict.PASS]
    if any(gate.verdict is Verdict.FAIL for gate in open_gates):
        return _shown(open_gates)
    if not seen.settled:
        return "buckets are still moving"
    if walked.seconds < step.minimum_seconds:
        return f"{walked.seconds:.0f} of {plain(step.minimum_seconds)} s have passed"
    if walked.samples < step.minimum_samples:
        return f"B has answered {walked.samples} of {step.minimum_samples} calls"
    return _shown(open_gates)


def _shown(gates: Sequence[GateResult]) -> str:
    return "; ".join(f"{gate.name} {gate.verdict.value}: {gate.evidence} (wanted: {gate.threshold})" for gate in gates)


def _canary_phases() -> str:
    return ", ".join(phase.value for phase, rule in PHASES.items() if rule.canary)


# --- The plan file ---------------------------------------------------------------------------------------------------

_PLAN_KEYS = ("on_fail", "patience_seconds", "step")
_STEP_KEYS = ("percent", "minimum_seconds", "minimum_samples", "gates")


def parse_plan(text: str) -> CanaryPlan:
    """A plan from TOML. Raises InvalidField, which names the key, its value and the allowed values."""
    if len(text) > MAX_PLAN_CHARACTERS:
        raise InvalidField("plan", f"{len(text)} characters", f"at most {MAX_PLAN_CHARACTERS} characters")
    try:
        said = parse_toml(text)
    except ValueError as error:
        raise InvalidField("plan", text, f"TOML such as `baton canary auto --example` prints; {error}") from None
    _check_keys("", said, _PLAN_KEYS)
    on_fail = said.get("on_fail", OnFail.BACK.value)
    if on_fail not in [choice.value for choice in OnFail]:
        raise InvalidField("on_fail", on_fail, "one of " + ", ".join(f'"{choice.value}"' for choice in OnFail))
    patience = _number("patience_seconds", said.get("patience_seconds", DEFAULT_PATIENCE_SECONDS), MAX_SECONDS)
    tables = said.get("step", [])
    if not isinstance(tables, list) or not 1 <= len(tables) <= MAX_STEPS:
        raise InvalidField("step", tables, f"1 to {MAX_STEPS} tables [[step]]")
    steps: list[Step] = []
    for number, table in enumerate(tables, 1):
        steps.append(_step(f"step {number}", table, steps[-1].permille if steps else 0))
    return CanaryPlan(tuple(steps), OnFail(on_fail), patience)


def _step(where: str, table: Any, before: int) -> Step:
    if not isinstance(table, dict):
        raise InvalidField(where, table, "a table with " + ", ".join(_STEP_KEYS))
    _check_keys(f"{where}: ", table, _STEP_KEYS)
    samples = table.get("minimum_samples", 0)
    if isinstance(samples, bool) or not isinstance(samples, int) or not 0 <= samples <= MAX_SAMPLES:
        raise InvalidField(f"{where}: minimum_samples", samples, f"a whole number, 0 to {MAX_SAMPLES}")
    return Step(
        permille=_permille(f"{where}: percent", table.get("percent"), before),
        minimum_seconds=_number(f"{where}: minimum_seconds", table.get("minimum_seconds", 0), MAX_SECONDS),
        minimum_samples=samples,
        gates=_gate_names(f"{where}: gates", table.get("gates", [])),
    )


def _permille(key: str, value: Any, before: int) -> int:
    least = f"more than {plain(before / 10)}" if before else "0.1"
    allowed = f"{least} to 100, in steps of 0.1"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise InvalidField(key, value, allowed)
    permille = round(value * 10)
    if not before < permille <= CANARY_FULL or not math.isclose(permille, value * 10, abs_tol=1e-6):
        raise InvalidField(key, value, allowed)
    return permille


def _number(key: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InvalidField(key, value, f"seconds, 0 to {plain(most)}")
    return float(value)


def _gate_names(key: str, value: Any) -> tuple[str, ...]:
    allowed = "a list of names out of " + ", ".join(WALK_GATES)
    if not isinstance(value, list):
        raise InvalidField(key, value, allowed)
    for name in value:
        if name not in WALK_GATES:
            raise InvalidField(key, name, allowed)
    return tuple(dict.fromkeys(value))


def _check_keys(where: str, said: Mapping[str, Any], known: Sequence[str]) -> None:
    for key, value in said.items():
        if key not in known:
            raise InvalidField(f"{where}{key}", value, "unknown key; allowed are " + ", ".join(known))

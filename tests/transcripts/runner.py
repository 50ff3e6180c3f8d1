"""Plays a text story against the pure core and records the core's answers.

A story is lines of comment (#), commands (> ...) and, below each command, its result. `play` reads the commands and
comments and returns the whole story with new results. The test compares it, or rewrites the file with `pytest
--rewrite`.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from services.router.core import canary
from services.router.core import phase as phases
from services.router.core.automatic_rollback import Action, Observation, decide, rolled_back
from services.router.core.canary import CanaryPlan, Step, Walked
from services.router.core.gates import Evidence, Limits, Verdict, check, not_overridable, worst
from services.router.core.measure import Counts
from services.router.core.phase import PHASES, IllegalMove, Phase, Setting
from services.router.core.plan import NO_FLAGS, Flags, target


class Story:
    """The state of one story."""

    def __init__(self) -> None:
        self.setting = Setting(generation=1)
        self.evidence = Evidence()
        self.flags = NO_FLAGS
        self._commands: dict[str, Callable[..., list[str]]] = {
            "know": self._know,
            "flag": self._flag,
            "plan": self._plan,
            "advance": self._advance,
            "rollback": lambda to: self._set(lambda: phases.rollback(self.setting, Phase(to))),
            "canary": lambda percent: self._set(lambda: phases.set_canary(self.setting, round(float(percent) * 10))),
            "shadow": self._shadow,
            "lift": lambda: self._set(lambda: phases.lift_hold(self.setting)),
            "call": self._call,
            "walk": self._begin_walk,
            "look": self._look,
            "rehearse": lambda *buckets: self._set(
                lambda: phases.begin_rehearsal(self.setting, tuple(map(int, buckets)))
            ),
            "watch": self._watch_b,
            "home": lambda: self._set(lambda: phases.end_rehearsal(self.setting)),
        }
        self._plan_of_walk = CanaryPlan(())
        self._place = Walked(0)

    def do(self, command: str) -> list[str]:
        name, *arguments = command.split()
        return self._commands[name](*arguments)

    def _watch_b(self, *facts: str) -> list[str]:
        """`watch a=CALLS/FAULTS b=CALLS/FAULTS`, in each of so many seconds; `for=`, `ago=`, `a-serves=no`."""
        given = dict(fact.split("=") for fact in facts)
        a, b = (Counts(*map(int, given.get(store, "0/0").split("/"))) for store in "ab")
        ago = float(given["ago"]) if "ago" in given else None
        seconds = [(a, b)] * int(given.get("for", "35"))
        seen = Observation(self.setting, seconds, given.get("a-serves", "yes") == "yes", ago)
        action, reason = decide(seen, Limits())
        said = [f"{action.value}: {reason}"]
        return [*said, *self._set(lambda: rolled_back(self.setting))] if action is Action.ROLL_BACK else said

    def _know(self, *facts: str) -> list[str]:
        known = {field.name for field in fields(Evidence)}
        for fact in facts:
            name, _, value = fact.partition("=")
            assert name in known, f"{name}: evidence is one of {sorted(known)}"
            self.evidence = replace(self.evidence, **{name: _number(value)})
        return []

    def _flag(self, fact: str) -> list[str]:
        name, _, value = fact.partition("=")
        on = {"on": True, "off": False, "unset": None}[value]
        if name == "all":
            self.flags = replace(self.flags, use_service_layer=on)
            return []
        others = {operation: flag for operation, flag in self.flags.operations.items() if operation != name}
        self.flags = Flags(self.flags.use_service_layer, others if on is None else {**others, name: on})
        return []

    def _judged(self, to: Phase) -> tuple[list[str], Verdict, list[str]]:
        evidence = replace(self.evidence, canary_permille=self.setting.canary_permille)
        results = check(PHASES[to].gates, evidence)
        lines = [f"{result.verdict.value} {result.name}: {result.evidence}" for result in results]
        return lines, worst(results), [result.name for result in not_overridable(results)]

    def _plan(self) -> list[str]:
        try:
            to = phases.next_phase(self.setting)
        except IllegalMove as error:
            return [f"no step: {error}"]
        return [f"next {to.value}: {PHASES[to].effect}", *self._judged(to)[0]]

    def _advance(self, name: str, *how: str) -> list[str]:
        to = Phase(name)
        try:
            phases.advance(self.setting, to)
        except IllegalMove as error:
            return [f"refused: {error}"]
        lines, verdict, fixed = self._judged(to)
        failing = [line for line in lines if not line.startswith("PASS")]
        if verdict is not Verdict.PASS and (fixed or how != ("override",)):
            return [f"blocked by {verdict.value}", *failing]
        return [*(f"overridden: {line}" for line in failing), *self._set(lambda: phases.advance(self.setting, to))]

    def _shadow(self, percent: str, *how: str) -> list[str]:
        permille = round(float(percent) * 10)
        return self._set(lambda: phases.set_shadow(self.setting, permille, same=how == ("same",)))

    def _set(self, change: Callable[[], Setting]) -> list[str]:
        before = self.setting
        try:
            self.setting = change()
        except IllegalMove as error:
            assert self.setting is before
            return [f"refused: {error}"]
        return [shown(self.setting)]

    def _begin_walk(self, *steps: str) -> list[str]:
        """`walk 5/10s/100/lag,parked 100/0s/0/`: percent, least time, least samples, gates of each step."""
        parts = [step.split("/") for step in steps]
        plan = CanaryPlan(
            tuple(
                Step(
                    permille=round(float(percent) * 10),
                    minimum_seconds=float(seconds.removesuffix("s")),
                    minimum_samples=int(samples),
                    gates=tuple(gates.split(",")) if gates else (),
                )
                for percent, seconds, samples, gates in parts
            ),
            patience_seconds=60.0,
        )
        try:
            first = canary.begin(plan, self.setting)
        except IllegalMove as error:
            return [f"refused: {error}"]
        self._plan_of_walk, self._place = plan, Walked(first)
        return self._set(lambda: phases.set_canary(self.setting, plan.steps[first].permille))

    def _look(self, *facts: str) -> list[str]:
        """`look 10s 100 moving`: seconds and calls since the last look, and whether buckets are on their way."""
        seconds, samples, *moving = facts
        place = self._place
        self._place = Walked(place.step, place.seconds + float(seconds.removesuffix("s")), place.samples + int(samples))
        gates = self._plan_of_walk.steps[place.step].gates
        seen = canary.Observation(self.setting, not moving, check(gates, self.evidence))
        said = canary.decide(self._plan_of_walk, self._place, seen)
        lines = [f"{said.action.value}: {said.reason}"]
        permille = said.permille
        if said.action is canary.Action.ADVANCE:
            self._place = Walked(place.step + 1)
        return lines if permille is None else [*lines, *self._set(lambda: phases.set_canary(self.setting, permille))]

    def _call(self, operation: str, bucket: str) -> list[str]:
        store, rule = target(self.setting, self.flags, operation, None if bucket == "-" else int(bucket))
        return [f"to {store} by {rule}"]


def _number(value: str) -> Any:
    if value in ("?", "none"):
        return None if value == "?" else ()
    return float(value) if "." in value else int(value)


def shown(setting: Setting) -> str:
    share = f", canary {setting.canary_permille / 10:g} %" if setting.rule.canary else ""
    shadow = f", shadow {setting.shadow_permille / 10:g} %" if setting.shadow_permille else ""
    away = f", away: {', '.join(map(str, setting.rehearsal))}" if setting.rehearsal else ""
    return f"{setting.generation}: {setting.phase.value}{share}{away}{shadow}{', held at A' if setting.hold else ''}"


def play(text: str) -> str:
    """The story with the core's current answers."""
    story = Story()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines += [line, *("  " + said for said in story.do(line[2:]))]
        elif not line.startswith("  "):
            lines.append(line)
    return "\n".join(lines) + "\n"

"""Grows the canary step by step, following a plan: a kind of job.

Each step of the plan is stored in the checkpoint before the canary is set, so a router that takes the job over can tell
the walk's own changes of the canary from an operator's. Time and calls count for a step only while a run observes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

from libs.clock import Clock
from libs.errors import InvalidField
from libs.text import plain
from services.router.core.canary import Action, CanaryPlan, Observation, Walked, begin, decide, parse_plan
from services.router.core.phase import IllegalMove, Outdated, Setting
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.steering.migration import MAX_REASON_CHARACTERS, Decision, Migration
from services.router.flows.steering.observe import SettingCache

NAME = "canary-auto"
PLAN = "plan"
"""The argument: the plan as TOML."""
TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk's checkpoint."""

    step: int
    """Index of the plan's step that the canary is at, or enters."""
    seconds: float = 0.0
    samples: int = 0
    """Time and B's calls at this step while a run observed them."""
    entering_from: int | None = None
    """The canary, in thousandths, when the step was decided on; None: the canary is at the step."""
    back: str = ""
    """Reason why the canary is set back to 0 %; "" if it is not."""
    run: str = ""
    """The run that observed last."""
    watched_at: float = 0.0
    """Time of the last observation, by that run's monotonic clock."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """B's calls at the last observation, by router."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, checkpoint: bytes) -> Walk:
        return cls(**json.loads(checkpoint))

    def watched(self, run: str, now: float, counts: Mapping[str, int]) -> Walk:
        """The walk after another observation. Time and calls between two runs do not count: no router observed them."""
        looked = replace(self, run=run, watched_at=now, counts=dict(counts))
        if self.run != run:
            return looked
        return replace(looked, seconds=self.seconds + now - self.watched_at, samples=self.samples + self._more(counts))

    def _more(self, counts: Mapping[str, int]) -> int:
        """Calls since the last observation. A router that was started, stopped or restarted since then adds none."""
        return sum(max(0, now - self.counts[router]) for router, now in counts.items() if router in self.counts)

    def entered(self) -> Walk:
        """The walk with the canary at the step; time and calls start at 0."""
        return replace(self, entering_from=None, seconds=0.0, samples=0)


class CanaryAuto:
    """A `JobKind`. Argument: the plan."""

    name = NAME
    unit = "steps"

    def __init__(
        self,
        migration: Migration,
        cache: SettingCache,
        answered_by_b: Callable[[], Mapping[str, int]],
        settled: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`answered_by_b`: calls that B has answered, by router. `settled`: whether each bucket is at the store that
        the setting assigns."""
        self._migration = migration
        self._cache = cache
        self._answered_by_b = answered_by_b
        self._settled = settled
        self._clock = clock

    def lane(self, arguments: Mapping[str, str]) -> str:
        for name in arguments:
            if name != PLAN:
                raise InvalidField("arguments", name, f"only {PLAN}: `baton canary auto --example` prints one")
        parse_plan(arguments.get(PLAN, ""))
        return NAME

    async def check(self, arguments: Mapping[str, str]) -> None:
        """Raises IllegalMove in a phase without a canary, ControlUnavailable."""
        begin(parse_plan(arguments[PLAN]), await self._cache.refresh())

    async def step(self, at: Position) -> Step:
        """Raises ControlUnavailable."""
        plan, setting = parse_plan(at.arguments[PLAN]), await self._cache.refresh()
        if at.checkpoint:
            walk = Walk.decode(at.checkpoint)
        else:
            try:
                walk = Walk(begin(plan, setting), entering_from=setting.canary_permille)
            except IllegalMove as error:
                return Step(b"", note=f"stopped: {error.message}", finished=True)
        walk = walk.watched(at.run, self._clock.monotonic(), self._answered_by_b())
        if walk.back:
            return await self._go_back(at, plan, walk, setting)
        if walk.entering_from is not None:
            return await self._enter(at, plan, walk, setting)
        return self._decide(at, plan, walk, setting)

    def _decide(self, at: Position, plan: CanaryPlan, walk: Walk, setting: Setting) -> Step:
        gates = self._migration.checked(plan.steps[walk.step].gates, setting)
        walked = Walked(walk.step, walk.seconds, walk.samples)
        following = decide(plan, walked, Observation(setting, self._settled(), gates))
        match following.action:
            case Action.HOLD:
                return _step(at, plan, walk, _at(plan, walk), waits=following.reason)
            case Action.ADVANCE:
                entering = replace(walk, step=walk.step + 1, entering_from=setting.canary_permille)
                return replace(_step(at, plan, entering, following.reason), wait_seconds=0.0)
            case Action.BACK:
                return replace(
                    _step(at, plan, replace(walk, back=following.reason), following.reason), wait_seconds=0.0
                )
            case Action.DONE:
                return _ended(at, plan, walk, f"done: {following.reason}")
            case Action.STOP:
                return _ended(at, plan, walk, f"stopped: {following.reason}")

    async def _enter(self, at: Position, plan: CanaryPlan, walk: Walk, setting: Setting) -> Step:
        """Set the canary to the step in the checkpoint."""
        permille = plan.steps[walk.step].permille
        as_decided = setting.rule.canary and not setting.hold and setting.canary_permille == walk.entering_from
        if as_decided and setting.canary_permille != permille:
            why = f"canary auto, step {walk.step + 1} of {len(plan.steps)}"
            if not await self._set(at, setting, permille, why):
                return _step(at, plan, walk, "", waits="the setting was changed concurrently; reading it again")
        # Otherwise the canary is at the step already, or an operator has set it: the next step distinguishes these.
        return _step(at, plan, walk.entered(), _at(plan, walk))

    async def _go_back(self, at: Position, plan: CanaryPlan, walk: Walk, setting: Setting) -> Step:
        if setting.canary_permille and not await self._set(at, setting, 0, f"canary auto: {walk.back}"):
            return _step(at, plan, walk, "", waits="the setting was changed concurrently; reading it again")
        return _ended(at, plan, walk, f"went back to 0 %: {walk.back}")

    async def _set(self, at: Position, setting: Setting, permille: int, why: str) -> bool:
        """Set the canary. Returns False if the setting was changed concurrently."""
        reason = f"{why}; {at.reason}" if at.reason else why
        decision = Decision(at.actor, reason[:MAX_REASON_CHARACTERS], setting.generation)
        try:
            await self._migration.set_canary(decision, permille)
        except Outdated:
            return False
        return True


def _at(plan: CanaryPlan, walk: Walk) -> str:
    return f"the canary is at {plain(plan.steps[walk.step].percent)} %"


def _step(
    at: Position, plan: CanaryPlan, walk: Walk, note: str, *, waits: str = "", wait_seconds: float = TICK_SECONDS
) -> Step:
    done = walk.step + 1 - at.done
    return Step(walk.encode(), done, len(plan.steps), note, waits=waits, wait_seconds=wait_seconds)


def _ended(at: Position, plan: CanaryPlan, walk: Walk, note: str) -> Step:
    return replace(_step(at, plan, walk, note), finished=True)

"""Walks the canary up by a plan, step by step, as one job of all routers.

What is wanted (the plan, or its end) and where the walk is are both in the control store: any router may be told, the
one that holds the lease walks, and the next one goes on where the last one was. Each step is written down before the
canary is set, so that a walk that is taken up by another router knows what was its own doing.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from libs.clock import Clock
from libs.errors import BatonError
from libs.tasks import Loop
from services.router.control.port import ControlStore, ControlUnavailable, Progress
from services.router.core.canary import Action, CanaryPlan, Next, Place, Seen, begin, decide, parse_plan
from services.router.core.gates import Evidence, Limits, check
from services.router.core.phase import Outdated, Setting
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache

JOB = "canary auto"
WANTED = "canary auto wanted"
LEASE = "canary auto"
LEASE_SECONDS = 10.0
TICK_SECONDS = 0.5
MAX_REASON_CHARACTERS = 500
"""What a walk says of itself in the journal, cut there."""


class WalkUnderWay(BatonError):
    """One walk at a time: stop the one that is under way first (baton canary auto --stop). Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "WALK_UNDER_WAY"


@dataclass(frozen=True, slots=True)
class Sights:
    """What a walk looks at. Each is a look at what is known already: no I/O."""

    evidence: Callable[[Setting], Evidence]
    samples: Callable[[], Mapping[str, int]]
    """By router, how many calls B has answered since the router began."""
    settled: Callable[[], bool]
    limits: Limits = field(default_factory=Limits)
    """Of the gates."""


@dataclass(frozen=True, slots=True)
class _Order:
    """What an operator asked for."""

    id: str = ""
    plan: str = ""
    by: str = ""
    reason: str = ""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> _Order:
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far one order has come."""

    id: str = ""
    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    entering_from: int | None = None
    """Where the canary was when the step was decided on; None: it is at the step."""
    back: str = ""
    """Why it is taken back to 0 %."""
    over: bool = False

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> _Cursor:
        return cls(**json.loads(text)) if text else cls()

    @property
    def place(self) -> Place:
        return Place(self.step, self.seconds, self.samples)


class _Over(Exception):
    """The walk has ended."""


class CanaryAuto:
    """The job, at one router. The process runs `loop`; `start` and `stop` tell all routers what is wanted."""

    def __init__(
        self,
        control: ControlStore,
        migration: Migration,
        cache: SettingCache,
        sights: Sights,
        holder: str,
        clock: Clock,
    ) -> None:
        self._control = control
        self._migration = migration
        self._cache = cache
        self._sights = sights
        self._holder = holder
        self._clock = clock
        self._told = asyncio.Event()
        self._progress = Progress(JOB, False)
        self.loop = Loop("canary auto", self.run_once, first_pause_seconds=0.1, longest_pause_seconds=1.0)

    @property
    def progress(self) -> Progress:
        """Where the walk is, whichever router walks; half a second old, older while the control store is away."""
        if self.loop.trouble and self._progress.running:
            return replace(self._progress, note=f"waits: {self.loop.trouble}")
        return self._progress

    async def start(self, decision: Decision, text: str) -> Progress:
        """Asks for a walk by this plan. Raises InvalidField, IllegalMove, Outdated, WalkUnderWay, ControlUnavailable;
        nothing is changed then."""
        decision.check()
        plan = parse_plan(text)
        setting = await self._cache.refresh()
        if decision.generation and decision.generation != setting.generation:
            raise Outdated()
        step = begin(plan, setting)
        progress = await self._load()
        _, order = await self._wanted()
        if order.id and not _is_over(progress, order):
            raise WalkUnderWay()
        order = _Order(uuid.uuid4().hex, text, decision.actor, decision.reason)
        await self._control.save(Progress(WANTED, True, cursor=order.encode()))
        await self._save(
            Progress(JOB, True, done=step, total=len(plan.steps), note=f"asked for by {decision.actor}"),
            _Cursor(order.id, step, entering_from=setting.canary_permille),
        )
        self._told.set()
        return self._progress

    async def stop(self, actor: str) -> Progress:
        """Asks for its end; the canary stays where it is. Raises InvalidField, ControlUnavailable."""
        Decision(actor).check()
        progress = await self._load()
        _, order = await self._wanted()
        if order.id and not _is_over(progress, order):
            await self._control.save(Progress(WANTED, False, cursor=replace(order, by=actor).encode()))
        self._told.set()
        return progress

    async def run_once(self, loop: Loop) -> None:
        """One look: walks what is wanted, if no other router does."""
        self._told.clear()
        _, order = await self._wanted()
        progress = await self._load()
        loop.well()
        if order.id and not _is_over(progress, order) and await self._renew():
            try:
                await self._walk(order, progress)
            except _Over:
                pass
            finally:
                with suppress(ControlUnavailable):
                    await self._control.lease(LEASE, self._holder, 0.0)
            return
        await self._pause()

    async def _walk(self, order: _Order, progress: Progress) -> None:
        """Until the walk is over or the lease is lost. Raises _Over, ControlUnavailable."""
        plan = parse_plan(order.plan)
        cursor = _Cursor.decode(progress.cursor)
        if cursor.id != order.id:
            # Whoever asked did not come to write down where it begins.
            setting = await self._cache.refresh()
            cursor = _Cursor(order.id, begin(plan, setting), entering_from=setting.canary_permille)
        watched_at, samples = self._clock.monotonic(), self._sights.samples()
        while await self._renew():
            wanted, latest = await self._wanted()
            if latest.id != order.id:
                return
            setting = await self._cache.refresh()
            # Only time in which somebody watched counts, and only calls that were seen meanwhile.
            now, seen_samples = self._clock.monotonic(), self._sights.samples()
            cursor = replace(
                cursor,
                seconds=cursor.seconds + now - watched_at,
                samples=cursor.samples + _more(samples, seen_samples),
            )
            watched_at, samples = now, seen_samples
            if not wanted:
                await self._end(plan, cursor, f"stopped by {latest.by}: the canary stays as it is")
            cursor = await self._tick(order, plan, cursor, setting)
            await self._pause()

    async def _tick(self, order: _Order, plan: CanaryPlan, cursor: _Cursor, setting: Setting) -> _Cursor:
        if cursor.back:
            return await self._go_back(order, plan, cursor, setting)
        step = plan.steps[cursor.step]
        if cursor.entering_from is not None:
            return await self._enter(order, plan, cursor, setting)
        limits = self._sights.limits.overlaid(setting.limits)
        seen = Seen(setting, self._sights.settled(), check(step.gates, self._sights.evidence(setting), limits))
        said = decide(plan, cursor.place, seen)
        if said.action is Action.ADVANCE:
            cursor = _Cursor(order.id, cursor.step + 1, entering_from=setting.canary_permille)
        elif said.action is Action.BACK:
            cursor = replace(cursor, back=said.reason)
        elif said.action is not Action.HOLD:
            await self._end(plan, cursor, _last_words(said))
        await self._save(self._at(plan, cursor, said.reason), cursor)
        return await self._tick(order, plan, cursor, setting) if said.action is not Action.HOLD else cursor

    async def _enter(self, order: _Order, plan: CanaryPlan, cursor: _Cursor, setting: Setting) -> _Cursor:
        """Sets the canary to the step that was decided on."""
        step = plan.steps[cursor.step]
        as_decided = setting.rule.canary and not setting.hold and setting.canary_permille == cursor.entering_from
        if as_decided and setting.canary_permille != step.permille:
            why = f"canary auto, step {cursor.step + 1} of {len(plan.steps)}"
            if not await self._set(order, setting, step.permille, why):
                return cursor
        # Else it is there already, or somebody else set it: the next look tells these apart.
        cursor = _Cursor(order.id, cursor.step)
        await self._save(self._at(plan, cursor, f"the canary is at {step.percent:g} %"), cursor)
        return cursor

    async def _go_back(self, order: _Order, plan: CanaryPlan, cursor: _Cursor, setting: Setting) -> _Cursor:
        if setting.canary_permille and not await self._set(order, setting, 0, f"canary auto: {cursor.back}"):
            return cursor
        await self._end(plan, cursor, f"went back to 0 %: {cursor.back}")
        return cursor

    async def _set(self, order: _Order, setting: Setting, permille: int, why: str) -> bool:
        """False: the setting was changed meanwhile: look again."""
        reason = f"{why}; {order.reason}" if order.reason else why
        decision = Decision(order.by, reason[:MAX_REASON_CHARACTERS], setting.generation)
        try:
            await self._migration.set_canary(decision, permille)
        except Outdated:
            return False
        return True

    async def _end(self, plan: CanaryPlan, cursor: _Cursor, note: str) -> None:
        """Raises _Over when that is written down."""
        cursor = replace(cursor, over=True)
        await self._save(
            replace(self._at(plan, cursor, note), running=False, finished_seconds=self._clock.now()), cursor
        )
        raise _Over

    def _at(self, plan: CanaryPlan, cursor: _Cursor, note: str) -> Progress:
        return Progress(JOB, True, done=cursor.step + 1, total=len(plan.steps), note=note)

    async def _renew(self) -> bool:
        return await self._control.lease(LEASE, self._holder, LEASE_SECONDS)

    async def _wanted(self) -> tuple[bool, _Order]:
        wanted = await self._control.progress(WANTED)
        return (wanted.running, _Order.decode(wanted.cursor)) if wanted else (False, _Order())

    async def _load(self) -> Progress:
        self._progress = await self._control.progress(JOB) or Progress(JOB, False)
        return self._progress

    async def _save(self, progress: Progress, cursor: _Cursor) -> None:
        progress = replace(progress, cursor=cursor.encode())
        await self._control.save(progress)
        self._progress = progress

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._told.wait()
        except TimeoutError:
            pass
        self._told.clear()


def _more(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """Calls since the last look. Of a router that has come, gone or begun anew meanwhile nothing is known."""
    return sum(max(0, count - before[router]) for router, count in now.items() if router in before)


def _is_over(progress: Progress, order: _Order) -> bool:
    cursor = _Cursor.decode(progress.cursor)
    return cursor.over and cursor.id == order.id


def _last_words(said: Next) -> str:
    return f"done: {said.reason}" if said.action is Action.DONE else f"stopped: {said.reason}"

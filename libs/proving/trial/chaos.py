"""A flip storm: flags, canary and phase change at random under load. At the end no write may be lost, and no resource
leaked.

The next flip is a pure function of the setting and a random number, so a seed gives the same storm, and a dry run shows
it. Flips go to all routers in turn, like those of independent operators. DEPRECATED, which cannot be rolled back, is
never entered. At the end the earlier setting is restored.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import grpc

from libs.pb.baton.control.v1 import cohorts_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceStub
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.walk import PHASES, phase_name
from libs.rpc.auth import operator_metadata
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of

if TYPE_CHECKING:
    from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceAsyncStub
    from libs.pb.baton.telemetry.v1 import telemetry_pb2

ACTOR = "baton chaos flip"
CALL_SECONDS = 3.0
TRY_AGAIN_SECONDS = 0.1
RESTORE_SECONDS = 60.0
CANARIES = (0, 1, 10, 100, 250, 500, 1000)
"""Shares in thousandths."""
AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
CANARY_PHASE = "DUAL_WRITE"
SHADOWS = (0, 10, 1000)
SHADOWED = frozenset({"SHADOW", "DUAL_WRITE", "DUAL_READ"})
"""Phases that compare reads; in others the share becomes 0."""
COHORT_PHASES = frozenset({"DUAL_WRITE", "DUAL_READ"})
COHORT = "storm"
COHORT_NAMES = "sandboxes/*"
"""Names of the storm's own cohort: its share steers every record, and the canary only buckets."""
SHARES = (0, 500, 1000)
HOLDING = frozenset({"OFF", "SHADOW", "DUAL_WRITE"})
"""Phases whose rollback holds all traffic at A."""


@dataclass(frozen=True, slots=True)
class State:
    """The part of the setting that a storm changes."""

    phase: str
    canary_permille: int = 0
    hold: bool = False
    flags: Mapping[str, bool] = field(default_factory=dict)
    shadow_permille: int = 0
    shadow_same: bool = False
    cohorts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, setting: pb.Setting) -> Self:
        phase = pb.Phase.Name(setting.phase).removeprefix("PHASE_")
        return cls(
            phase,
            setting.canary_permille,
            setting.hold,
            dict(setting.flags),
            setting.shadow_permille,
            setting.shadow_same,
            {cohort.name: cohort.permille for cohort in setting.cohorts},
        )


@dataclass(frozen=True, slots=True)
class Flip:
    """One change. ``kind``: flag, canary, cohort, shadow, advance, rollback or lift."""

    kind: str
    flag: str = ""
    value: bool | None = None
    permille: int = 0
    same: bool = False
    """Whether a shadow compares a store with itself."""
    to: str = ""
    cohort: str = ""
    change: str = ""
    """Change of a cohort: Add, Set or Remove."""

    def __str__(self) -> str:
        match self.kind:
            case "flag":
                return f"{self.flag} {'unset' if self.value is None else str(self.value).lower()}"
            case "canary":
                return f"canary {self.permille / 10:g} %"
            case "cohort":
                share = "removed" if self.change == "Remove" else f"{self.permille / 10:g} %"
                return f"cohort {self.cohort} {share}"
            case "shadow":
                return f"shadow {self.permille / 10:g} %"
            case "lift":
                return "hold lifted"
        return f"{self.kind} to {self.to}"

    def after(self, state: State) -> State:
        """The state after the flip."""
        match self.kind:
            case "flag":
                flags = {name: value for name, value in state.flags.items() if name != self.flag}
                return replace(state, flags=flags if self.value is None else {**flags, self.flag: self.value})
            case "canary":
                return replace(state, canary_permille=self.permille)
            case "cohort":
                shares = {**state.cohorts, self.cohort: None if self.change == "Remove" else self.permille}
                return replace(state, cohorts={name: one for name, one in shares.items() if one is not None})
            case "shadow":
                return replace(state, shadow_permille=self.permille, shadow_same=self.same)
            case "lift":
                return replace(state, hold=False)
            case "advance":
                return _entered(replace(state, phase=self.to, canary_permille=0))
        held = self.to in HOLDING
        cohorts = dict.fromkeys(state.cohorts, 0) if held else state.cohorts
        return _entered(replace(state, phase=self.to, canary_permille=0, hold=held, cohorts=cohorts))

    def request(self, actor: str, generation: int) -> tuple[str, Any]:
        """Method and request of the control API."""
        match self.kind:
            case "flag":
                message = pb.SetFlagRequest(actor=actor, reason="flip", generation=generation, name=self.flag)
                if self.value is not None:
                    message.value = self.value
                return "SetFlag", message
            case "canary":
                return "SetCanary", pb.SetCanaryRequest(actor=actor, permille=self.permille, generation=generation)
            case "cohort":
                return self._cohort_request(actor, generation)
            case "shadow":
                return "SetShadow", pb.SetShadowRequest(
                    actor=actor, permille=self.permille, same=self.same, generation=generation
                )
            case "lift":
                return "LiftHold", pb.LiftHoldRequest(actor=actor, generation=generation)
            case "advance":
                return "AdvancePhase", pb.AdvancePhaseRequest(
                    actor=actor,
                    reason="a flip storm passes every gate",
                    override=True,
                    generation=generation,
                    to=pb.Phase.Value(f"PHASE_{self.to}"),
                )
        to = pb.Phase.Value(f"PHASE_{self.to}")
        return "RollbackPhase", pb.RollbackPhaseRequest(actor=actor, reason="flip", to=to, generation=generation)

    def _cohort_request(self, actor: str, generation: int) -> tuple[str, Any]:
        if self.change == "Remove":
            return "RemoveCohort", pb.RemoveCohortRequest(actor=actor, name=self.cohort, generation=generation)
        if self.change == "Set":
            share = self.permille
            return "SetCohort", pb.SetCohortRequest(
                actor=actor, generation=generation, permille=share, name=self.cohort
            )
        cohort = cohorts_pb2.Cohort(name=self.cohort, names=COHORT_NAMES, permille=self.permille)
        return "AddCohort", pb.AddCohortRequest(actor=actor, cohort=cohort, generation=generation)


def _entered(state: State) -> State:
    return state if state.phase in SHADOWED else replace(state, shadow_permille=0, shadow_same=False)


def _kinds(state: State, flags: Sequence[str]) -> list[str]:
    """The kinds that are allowed now; likelier ones occur more than once."""
    place = PHASES.index(state.phase)
    kinds = ["flag"] * 3 if flags else []
    if state.hold:
        kinds += ["lift"] * 3
    elif state.phase == CANARY_PHASE:
        kinds += ["canary"] * 3
    if not state.hold and state.phase in COHORT_PHASES:
        kinds += ["cohort"] * 2
    if not state.hold and place + 1 < len(PHASES):
        kinds += ["advance"] * 3
    if place:
        kinds.append("rollback")
    if state.phase in SHADOWED:
        kinds.append("shadow")
    return kinds


def choose(chance: random.Random, state: State, flags: Sequence[str]) -> Flip:
    """The next flip: one of the kinds that are allowed now, then one of its kind."""
    place = PHASES.index(state.phase)
    kind = chance.choice(_kinds(state, flags))
    match kind:
        case "flag":
            name = chance.choice(flags)
            now = state.flags.get(name)
            return Flip(
                "flag", flag=name, value=chance.choice([value for value in (True, False, None) if value != now])
            )
        case "canary":
            return Flip("canary", permille=chance.choice([one for one in CANARIES if one != state.canary_permille]))
        case "cohort":
            return _cohort_flip(chance, state)
        case "shadow":
            return Flip("shadow", permille=chance.choice([one for one in SHADOWS if one != state.shadow_permille]))
        case "advance":
            return Flip("advance", to=PHASES[place + 1])
        case "rollback":
            return Flip("rollback", to=chance.choice(PHASES[:place]))
    return Flip("lift")


def _cohort_flip(chance: random.Random, state: State) -> Flip:
    if COHORT not in state.cohorts:
        return Flip("cohort", cohort=COHORT, change="Add", permille=chance.choice(SHARES))
    shares = [one for one in SHARES if one != state.cohorts[COHORT]]
    return Flip("cohort", cohort=COHORT, change=chance.choice(("Set", "Remove")), permille=chance.choice(shares))


def way_to(state: State, wanted: State) -> Flip | None:
    """The next flip on the way back to an earlier state; None if it is reached."""
    for name in sorted({*state.flags, *wanted.flags}):
        if state.flags.get(name) != wanted.flags.get(name):
            return Flip("flag", flag=name, value=wanted.flags.get(name))
    for name in state.cohorts.keys() - wanted.cohorts.keys():
        return Flip("cohort", cohort=name, change="Remove")
    return _cohort_back(state, wanted) or _phase_back(state, wanted) or _shares_back(state, wanted)


def _cohort_back(state: State, wanted: State) -> Flip | None:
    """Shares are set only where cohorts steer, and stay when CUTOVER is entered from there."""
    for name, share in wanted.cohorts.items():
        if state.cohorts.get(name) != share and not state.hold and state.phase in (*COHORT_PHASES, "CUTOVER"):
            back = Flip("rollback", to="DUAL_READ")
            return back if state.phase == "CUTOVER" else Flip("cohort", cohort=name, change="Set", permille=share)
    return None


def _phase_back(state: State, wanted: State) -> Flip | None:
    now, then = PHASES.index(state.phase), PHASES.index(wanted.phase)
    if wanted.hold and not (state.hold and now == then):
        # Only a rollback sets a hold: from one phase further.
        if now > then:
            return Flip("rollback", to=wanted.phase)
        return Flip("lift") if state.hold else Flip("advance", to=PHASES[now + 1])
    if now <= then and state.hold and not wanted.hold:
        return Flip("lift")
    if now == then:
        return None
    return Flip("advance", to=PHASES[now + 1]) if now < then else Flip("rollback", to=wanted.phase)


def _shares_back(state: State, wanted: State) -> Flip | None:
    if state.canary_permille != wanted.canary_permille:
        return Flip("canary", permille=wanted.canary_permille)
    if (state.shadow_permille, state.shadow_same) != (wanted.shadow_permille, wanted.shadow_same):
        return Flip("shadow", permille=wanted.shadow_permille, same=wanted.shadow_same)
    return None


def sequence(state: State, flags: Sequence[str], seed: int, count: int) -> list[Flip]:
    """The flips of a storm without other changes, for a dry run."""
    chance = random.Random(seed)
    flips = []
    for _ in range(count):
        flip = choose(chance, state, flags)
        state = flip.after(state)
        flips.append(flip)
    return flips


@dataclass(frozen=True, slots=True)
class StormPlan:
    every_seconds: float
    for_seconds: float
    seed: int = 1

    @property
    def flips(self) -> int:
        return max(1, int(self.for_seconds / self.every_seconds))


@dataclass(slots=True)
class Storm:
    """Routers by their control addresses, and the flips made so far."""

    stubs: Sequence[ControlServiceAsyncStub]
    addresses: Sequence[str]
    token: str = ""
    actor: str = ACTOR
    patience_seconds: float = 20.0
    """How long to keep asking while no router answers."""
    flips: Counter[str] = field(default_factory=Counter)
    """Successful flips by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """Failed flips by reason: the setting had changed meanwhile, or a router was unavailable."""

    @classmethod
    @asynccontextmanager
    async def open(cls, controls: Sequence[str], token: str = "", actor: str = ACTOR) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(open_channel(address)) for address in controls]
            yield cls([ControlServiceStub(channel.grpc) for channel in channels], controls, token, actor)

    async def begin(self) -> tuple[State, list[str]]:
        """The state to restore, and the names of the flags. Raises TrialFailed if a storm must not begin."""
        setting = await self.setting()
        state = State.of(setting)
        if state.phase not in PHASES:
            raise TrialFailed(f"the phase is {state.phase}, which has no way back: nothing may be flipped")
        status = await self._anybody("GetStatus", pb.GetStatusRequest())
        for job in (status.canary_auto, status.rehearsal):
            if job.running:
                raise TrialFailed(f"{job.job} is under way: stop it or wait for its end")
        flags = await self._anybody("ListFlags", pb.ListFlagsRequest())
        return state, [flag.name for flag in flags.flags]

    async def rage(self, plan: StormPlan, flags: Sequence[str], say: Callable[[str], None]) -> None:
        """Flip until the time is over. `say` is called with the setting after each flip. Raises TrialFailed if no
        router answers for long."""
        chance = random.Random(plan.seed)
        began = time.monotonic()
        setting = await self.setting()
        for number in range(plan.flips):
            await asyncio.sleep(max(0.0, began + number * plan.every_seconds - time.monotonic()))
            if time.monotonic() - began > plan.for_seconds:
                return
            flip = choose(chance, State.of(setting), flags)
            setting = await self._flip(flip, setting, chance.randrange(len(self.stubs)))
            say(phase_name(setting))

    async def restore(self, wanted: State) -> None:
        """Restore the state. Raises TrialFailed if that is not possible in time."""
        deadline = time.monotonic() + RESTORE_SECONDS
        setting = await self.setting()
        while (flip := way_to(State.of(setting), wanted)) is not None:
            if time.monotonic() > deadline:
                raise TrialFailed(f"not put back after {RESTORE_SECONDS:g} s: now {State.of(setting)}, was {wanted}")
            before = setting.generation
            setting = await self._flip(flip, setting, 0, counted=False)
            if setting.generation == before:
                await asyncio.sleep(TRY_AGAIN_SECONDS)

    async def setting(self) -> pb.Setting:
        """The setting as the control store has it now."""
        answer = await self._anybody("PlanPhase", pb.PlanPhaseRequest())
        found: pb.Setting = answer.setting
        return found

    async def statuses(self) -> list[pb.GetStatusResponse]:
        """Status of every router that answers."""
        answers = []
        for stub in self.stubs:
            try:
                answers.append(await self._ask(stub, "GetStatus", pb.GetStatusRequest()))
            except grpc.aio.AioRpcError:
                continue
        return answers

    async def vitals(self, place: int) -> telemetry_pb2.Vitals:
        """Vitals of one router. Raises grpc.aio.AioRpcError."""
        answer = await self._ask(self.stubs[place], "GetVitals", pb.GetVitalsRequest())
        found: telemetry_pb2.Vitals = answer.vitals
        return found

    async def _flip(self, flip: Flip, setting: pb.Setting, place: int, *, counted: bool = True) -> pb.Setting:
        """The setting after the flip; if the flip failed, the current one."""
        method, request = flip.request(self.actor, setting.generation)
        try:
            answer = await self._ask(self.stubs[place], method, request)
        except grpc.aio.AioRpcError as error:
            if counted:
                self.refused[reason_of(error)[0] or error.code().name] += 1
            return await self.setting()
        if counted:
            self.flips[flip.kind] += 1
        found: pb.Setting = answer.setting
        return found

    async def _anybody(self, method: str, request: Any) -> Any:
        """Ask the routers in turn. Raises TrialFailed if none answers for a while."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            words = ""
            for stub in self.stubs:
                try:
                    return await self._ask(stub, method, request)
                except grpc.aio.AioRpcError as error:
                    words = f"{error.code().name} {error.details()}"
                    if error.code() not in AWAY:
                        raise TrialFailed(f"the router refuses: {words}") from error
            if time.monotonic() > deadline:
                raise TrialFailed(f"no router answers at {', '.join(self.addresses)}: {words}")
            await asyncio.sleep(TRY_AGAIN_SECONDS)

    async def _ask(self, stub: ControlServiceAsyncStub, method: str, request: Any) -> Any:
        return await getattr(stub, method)(
            request, timeout=CALL_SECONDS, metadata=grpc.aio.Metadata(*operator_metadata(self.token))
        )

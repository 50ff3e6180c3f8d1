"""The phases of a migration, as one table.

Rule 1: everything that differs between phases stands in `PHASES`. Code asks the table; it never compares phases.
Rule 2: forward is one step at a time, names the phase that is entered, and passes its gates. Back is to any earlier
phase, at once and without gates, because going back must never wait for anything. DEPRECATED alone has no way back.
Rule 3: a phase is a hint like a flag. It says where traffic should go; where a record may be written is decided by the
record's row in its store. So a phase may change at any moment, at any router at another time, and no write is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from libs.errors import BatonError
from libs.ownership.model import Store

CANARY_FULL = 1000
"""Permille: all buckets."""

SHADOW_FULL = 1000
"""Permille: all reads."""


class Phase(Enum):
    OFF = "OFF"
    SHADOW = "SHADOW"
    DUAL_WRITE = "DUAL_WRITE"
    DUAL_READ = "DUAL_READ"
    CUTOVER = "CUTOVER"
    DEPRECATED = "DEPRECATED"

    def __repr__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class PhaseRule:
    home: Store
    """Where traffic goes that nothing else steers."""
    canary: bool
    """Canary buckets go to B."""
    compared: str
    """Which reads are compared in the background, with what."""
    shadow: bool
    """Reads may be compared at all."""
    way_back: bool
    """A may be asked to take everything back: until then it must be kept running and fed."""
    old_clients_at_a: bool
    """Clients of an old schema version read at A, and begin new names there, where nothing else steers their calls."""
    rehearses: bool
    """Both stores take live traffic, so buckets may go to the other one and back to see how that goes."""
    gates: tuple[str, ...]
    """What must pass before this phase is entered (see `gates.GATES`)."""
    effect: str
    """What entering it does, for the operator."""
    answers: str
    crash: str
    back: str
    """For the README's table: who answers, what a crash of one process costs, what going back costs."""


PHASES: dict[Phase, PhaseRule] = {
    Phase.OFF: PhaseRule(
        home=Store.A,
        canary=False,
        compared="nothing",
        shadow=False,
        way_back=True,
        old_clients_at_a=True,
        rehearses=False,
        gates=(),
        effect="all calls go to A; B follows by the event log",
        answers="A",
        crash="nothing; A's records wait until A is back",
        back="nothing",
    ),
    Phase.SHADOW: PhaseRule(
        home=Store.A,
        canary=False,
        compared="sampled reads against B",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=False,
        gates=("audit", "backfill", "lag", "parked"),
        effect="all calls go to A; sampled reads are compared with B's answers",
        answers="A",
        crash="nothing; A's records wait until A is back",
        back="nothing",
    ),
    Phase.DUAL_WRITE: PhaseRule(
        home=Store.A,
        canary=True,
        compared="sampled reads against the other store",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=True,
        gates=("shadow-consistent", "lag", "parked"),
        effect="canary buckets are handed to B, as many as `baton canary set` says; all else stays at A",
        answers="the record's owner: B for canary buckets, else A",
        crash="nothing; the dead store's records wait, their reads come from the replica, marked stale",
        back="the canary's records are handed back, under traffic",
    ),
    Phase.DUAL_READ: PhaseRule(
        home=Store.B,
        canary=False,
        compared="sampled reads against A",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=True,
        gates=("error-rate", "canary-complete", "ledger", "lag", "parked"),
        effect="every bucket is handed to B; A follows by the event log",
        answers="the record's owner: B, or A until the record has moved",
        crash="nothing; the dead store's records wait, their reads come from the replica, marked stale",
        back="all records that B owns are handed back, under traffic",
    ),
    Phase.CUTOVER: PhaseRule(
        home=Store.B,
        canary=False,
        compared="nothing",
        shadow=False,
        way_back=True,
        old_clients_at_a=False,
        rehearses=False,
        gates=("buckets-done", "latency-parity", "rehearsal", "ledger", "lag", "parked"),
        effect="B serves everything; A stays a hot backup that applies every change",
        answers="B",
        crash="nothing; B's records wait, reads come from A, marked stale",
        back="all records are handed back, under traffic",
    ),
    Phase.DEPRECATED: PhaseRule(
        home=Store.B,
        canary=False,
        compared="nothing",
        shadow=False,
        way_back=False,
        old_clients_at_a=False,
        rehearses=False,
        gates=("a-owns-nothing", "golden-metrics", "no-active-clients", "nothing-under-way", "ledger", "lag", "parked"),
        effect="A may be shut down: there is no way back after this",
        answers="B",
        crash="nothing; B's records wait",
        back="not possible",
    ),
}

ORDER = tuple(PHASES)

LAST_STEP_CONFIRM = "simple_mcp"
"""Typed to enter a phase without a way back: the store that may be shut down then."""


class IllegalMove(BatonError):
    """The phase cannot change like that; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "ILLEGAL_MOVE"


class GateBlocked(BatonError):
    """A gate does not pass; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "GATE_BLOCKED"


class Outdated(BatonError):
    """Somebody else changed the setting meanwhile; nothing was changed: look again and decide anew."""

    code = "ABORTED"
    reason = "OUTDATED"


@dataclass(frozen=True, slots=True)
class Setting:
    """What the operator has set. Each change makes the next generation."""

    generation: int = 0
    phase: Phase = Phase.OFF
    canary_permille: int = 0
    hold: bool = False
    """All traffic goes to A whatever the phase says: set by going back, lifted only by a person."""
    rehearsal: tuple[int, ...] = ()
    """Buckets that are at the other store than phase and canary say, for the time of a rehearsal."""
    flags: tuple[tuple[str, bool], ...] = ()
    """Flags that the operator has set, by full name, in the order of names. One that is not there is unset."""
    limits: tuple[tuple[str, float], ...] = ()
    """Limits of gates and of automatic rollback that differ from the routers' own settings (see `core.limits`)."""
    shadow_permille: int = 0
    """Thousandths of the reads that are compared in the background."""
    shadow_same: bool = False
    """They are compared with the answering store itself, which shows how much differs for no reason."""
    shadow_since: int = 0
    """The generation that set these: what was compared before it is not counted with what is compared since."""

    @property
    def rule(self) -> PhaseRule:
        return PHASES[self.phase]


def next_phase(setting: Setting) -> Phase:
    """The one step forward. Raises IllegalMove at the end, and while a hold stands."""
    place = ORDER.index(setting.phase) + 1
    if place == len(ORDER):
        raise IllegalMove(f"{setting.phase.value} is the last phase: there is no step forward")
    if setting.hold:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    return ORDER[place]


def advance(setting: Setting, to: Phase) -> Setting:
    """Enter the next phase; the gates are the caller's to check. A canary starts at 0.

    The step names its phase: the same step by two people, or by a router with an older setting, is one step, not two.

    Raises IllegalMove: `to` is not the next phase.
    """
    phase = next_phase(setting)
    if to is not phase:
        raise IllegalMove(
            f"{to.value} is not the next phase: {setting.phase.value} is entered, the next is {phase.value};"
            " nothing was changed"
        )
    after = replace(setting, generation=setting.generation + 1, phase=phase, canary_permille=0, rehearsal=())
    return _shadowed(after)


def rollback(setting: Setting, to: Phase) -> Setting:
    """Back to an earlier phase. A phase that writes to A holds all traffic there, the canary's too."""
    if not setting.rule.way_back:
        raise IllegalMove(f"{setting.phase.value} has no way back: A may be shut down or behind")
    same_without_canary = to is setting.phase and setting.rule.canary and not setting.hold
    if ORDER.index(to) >= ORDER.index(setting.phase) and not same_without_canary:
        earlier = ", ".join(phase.value for phase in ORDER[: ORDER.index(setting.phase)]) or "none"
        raise IllegalMove(f"{to.value} is not before {setting.phase.value}; earlier phases: {earlier}")
    hold = PHASES[to].home is Store.A
    after = replace(setting, generation=setting.generation + 1, phase=to, canary_permille=0, hold=hold, rehearsal=())
    return _shadowed(after)


def _shadowed(setting: Setting) -> Setting:
    """Where no reads are compared there is nothing left to compare them by."""
    if setting.rule.shadow or not setting.shadow_permille:
        return setting
    return replace(setting, shadow_permille=0, shadow_same=False, shadow_since=setting.generation)


def set_canary(setting: Setting, permille: int) -> Setting:
    """How many thousandths of the buckets go to B. Raises IllegalMove where no canary steers."""
    if not 0 <= permille <= CANARY_FULL:
        raise IllegalMove(f"canary: {permille / 10:g} % is not valid: 0 to 100 %, in steps of 0.1 %")
    if not setting.rule.canary:
        places = ", ".join(phase.value for phase, rule in PHASES.items() if rule.canary)
        raise IllegalMove(f"a canary steers only in {places}; the phase is {setting.phase.value}")
    if setting.hold and permille:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    return replace(setting, generation=setting.generation + 1, canary_permille=permille, rehearsal=())


def set_shadow(setting: Setting, permille: int, *, same: bool = False) -> Setting:
    """How many thousandths of the reads are compared; counts begin anew. Raises IllegalMove where none are."""
    if not 0 <= permille <= SHADOW_FULL:
        raise IllegalMove(f"shadow: {permille / 10:g} % is not valid: 0 to 100 %, in steps of 0.1 %")
    if permille and not setting.rule.shadow:
        places = ", ".join(phase.value for phase, rule in PHASES.items() if rule.shadow)
        raise IllegalMove(f"reads are compared only in {places}; the phase is {setting.phase.value}")
    generation = setting.generation + 1
    return replace(
        setting,
        generation=generation,
        shadow_permille=permille,
        shadow_same=same and permille > 0,
        shadow_since=generation,
    )


def lift_hold(setting: Setting) -> Setting:
    if not setting.hold:
        raise IllegalMove("there is no hold to lift")
    return replace(setting, generation=setting.generation + 1, hold=False)


def noted(setting: Setting) -> Setting:
    """As it was: the journal is to keep what was done elsewhere."""
    return replace(setting, generation=setting.generation + 1)


def set_flag(setting: Setting, name: str, value: bool | None) -> Setting:
    """True: to B. False: to A. None: unset, the next rule is asked. The name is the caller's to check.

    Raises IllegalMove where A must not be asked any more.
    """
    if value is False and not setting.rule.way_back:
        raise IllegalMove(f"{name}: in {setting.phase.value} no call may go to A: it may be shut down or behind")
    flags = {key: kept for key, kept in setting.flags if key != name}
    if value is not None:
        flags[name] = value
    return replace(setting, generation=setting.generation + 1, flags=tuple(sorted(flags.items())))


def begin_rehearsal(setting: Setting, buckets: tuple[int, ...]) -> Setting:
    """These buckets go to the other store, until the end or any change of phase or canary. Raises IllegalMove."""
    if not setting.rule.rehearses:
        places = ", ".join(phase.value for phase, rule in PHASES.items() if rule.rehearses)
        raise IllegalMove(
            f"a rehearsal needs a phase in which both stores take traffic: {places}; the phase is {setting.phase.value}"
        )
    if setting.hold:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    if setting.rehearsal:
        raise IllegalMove("buckets are away for another rehearsal: wait for its end")
    return replace(setting, generation=setting.generation + 1, rehearsal=buckets)


def end_rehearsal(setting: Setting) -> Setting:
    if not setting.rehearsal:
        raise IllegalMove("no bucket is away for a rehearsal")
    return replace(setting, generation=setting.generation + 1, rehearsal=())

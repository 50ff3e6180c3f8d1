"""The phases of a migration, as one table.

Rule 1: `PHASES` holds every difference between phases. Code reads the table and never compares phases.
Rule 2: forward is one step at a time, names the phase to enter, and passes its gates. Back is to any earlier phase, at
once and without gates, because a rollback must not wait. Only DEPRECATED has no way back.
Rule 3: a phase is a hint, like a flag. It directs traffic, but the record's row in its store decides where the record
may be written. So a phase may change at any moment, at each router at another time, and no write is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from libs.errors import BatonError
from libs.ownership.model import Store
from services.router.core.cohorts import Cohort, sent_home
from services.router.core.pending import PendingCall

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
    """Target of traffic that no other rule steers."""
    canary: bool
    """Canary buckets go to B."""
    cohorts: bool
    """Records of a cohort are at the store of its share (see `core.cohorts`)."""
    compared: str
    """Reads that are compared in the background, and their counterpart."""
    shadow: bool
    """Reads may be compared at all."""
    way_back: bool
    """A rollback to A is possible, so A must be kept running and fed."""
    old_clients_at_a: bool
    """Clients of an old schema version read at A and create records there, unless another rule steers their calls."""
    rehearses: bool
    """Both stores take live traffic, so a rehearsal may move buckets to the other store and back."""
    sampled: bool
    """A share of the calls that clients send to a store directly goes through a router, for the evidence."""
    gates: tuple[str, ...]
    """Gates to pass before entering this phase (see `gates.GATES`)."""
    effect: str
    """Effect of entering it, for the operator."""
    answers: str
    crash: str
    back: str
    """Texts for the documents: the store that answers, the loss in a crash of one process, the rollback cost."""


PHASES: dict[Phase, PhaseRule] = {
    Phase.OFF: PhaseRule(
        home=Store.A,
        canary=False,
        cohorts=False,
        compared="nothing",
        shadow=False,
        way_back=True,
        old_clients_at_a=True,
        rehearses=False,
        sampled=False,
        gates=(),
        effect="all calls go to A; B follows by the event log",
        answers="A",
        crash="nothing; A's records wait until A is back",
        back="nothing",
    ),
    Phase.SHADOW: PhaseRule(
        home=Store.A,
        canary=False,
        cohorts=False,
        compared="sampled reads against B",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=False,
        sampled=True,
        gates=("audit", "backfill", "lag", "parked"),
        effect="all calls go to A; sampled reads are compared with B's answers",
        answers="A",
        crash="nothing; A's records wait until A is back",
        back="nothing",
    ),
    Phase.DUAL_WRITE: PhaseRule(
        home=Store.A,
        canary=True,
        cohorts=True,
        compared="sampled reads against the other store",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=True,
        sampled=True,
        gates=("shadow-consistent", "lag", "parked"),
        effect="canary buckets are handed to B, as many as `baton canary set` sets; all others stay at A",
        answers="the record's owner: B for canary buckets, else A",
        crash="nothing; the dead store's records wait, their reads come from the replica, marked stale",
        back="the canary's records are handed back, under traffic",
    ),
    Phase.DUAL_READ: PhaseRule(
        home=Store.B,
        canary=False,
        cohorts=True,
        compared="sampled reads against A",
        shadow=True,
        way_back=True,
        old_clients_at_a=True,
        rehearses=True,
        sampled=True,
        gates=("error-rate", "canary-complete", "ledger", "lag", "parked"),
        effect="every bucket is handed to B, except records that a cohort keeps at A; A follows by the event log",
        answers="the record's owner: B, or A until the record has moved",
        crash="nothing; the dead store's records wait, their reads come from the replica, marked stale",
        back="all records that B owns are handed back, under traffic",
    ),
    Phase.CUTOVER: PhaseRule(
        home=Store.B,
        canary=False,
        cohorts=False,
        compared="nothing",
        shadow=False,
        way_back=True,
        old_clients_at_a=False,
        rehearses=False,
        sampled=True,
        gates=("buckets-done", "latency-parity", "rehearsal", "ledger", "lag", "parked"),
        effect="B serves everything; A stays a hot backup that applies every change",
        answers="B",
        crash="nothing; B's records wait, reads come from A, marked stale",
        back="all records are handed back, under traffic",
    ),
    Phase.DEPRECATED: PhaseRule(
        home=Store.B,
        canary=False,
        cohorts=False,
        compared="nothing",
        shadow=False,
        way_back=False,
        old_clients_at_a=False,
        rehearses=False,
        sampled=False,
        gates=(
            "a-owns-nothing",
            "golden-metrics",
            "no-active-clients",
            "nothing-under-way",
            "deep-comparison",
            "cold-backup",
            "ledger",
            "lag",
            "parked",
        ),
        effect="A may be shut down: there is no way back after this",
        answers="B",
        crash="nothing; B's records wait",
        back="not possible",
    ),
}

ORDER = tuple(PHASES)

LAST_STEP_CONFIRM = "simple_mcp"
"""Confirmation for a phase without a way back: the store that may be shut down then."""


class IllegalMove(BatonError):
    """The phase cannot change like that; the setting is unchanged."""

    code = "FAILED_PRECONDITION"
    reason = "ILLEGAL_MOVE"


class GateBlocked(BatonError):
    """A gate does not pass; the setting is unchanged."""

    code = "FAILED_PRECONDITION"
    reason = "GATE_BLOCKED"


class Outdated(BatonError):
    """Another change was faster; the setting is unchanged. Read it and decide again."""

    code = "ABORTED"
    reason = "OUTDATED"


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of the migration. Each change makes the next generation."""

    generation: int = 0
    phase: Phase = Phase.OFF
    canary_permille: int = 0
    hold: bool = False
    """All traffic goes to A in any phase. A rollback sets it, only an operator lifts it."""
    rehearsal: tuple[int, ...] = ()
    """Buckets that a rehearsal has moved to the other store."""
    cohorts: tuple[Cohort, ...] = ()
    """Records with a share of their own (see `core.cohorts`), in the order in which they match."""
    flags: tuple[tuple[str, bool], ...] = ()
    """Flags that the operator has set: full name and value, ordered by name. An absent flag is unset."""
    limits: tuple[tuple[str, float], ...] = ()
    """Limits of gates and of automatic rollback that differ from the routers' own settings (see `core.limits`)."""
    shadow_permille: int = 0
    """Thousandths of the reads that are compared in the background."""
    shadow_same: bool = False
    """Reads are compared with a second answer of the same store, to count differences without a migration."""
    shadow_since: int = 0
    """Generation that set the comparison. Counts start again with it."""
    serves_subjects: bool = False
    """Requests are served under the subjects of their callers, not under `anonymous`."""
    two_person: bool = False
    """Steps without a way back need a second person (see `core.approvals`)."""
    pending: tuple[PendingCall, ...] = ()
    """Calls that wait for a second person."""
    unknown: tuple[tuple[str, str], ...] = ()
    """Fields of a newer release: name, and value as JSON. They are kept."""

    @property
    def rule(self) -> PhaseRule:
        return PHASES[self.phase]


def next_phase(setting: Setting) -> Phase:
    """The step forward. Raises IllegalMove in the last phase and during a hold."""
    index = ORDER.index(setting.phase) + 1
    if index == len(ORDER):
        raise IllegalMove(f"{setting.phase.value} is the last phase: there is no step forward")
    if setting.hold:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    return ORDER[index]


def advance(setting: Setting, to: Phase) -> Setting:
    """Enter the next phase. The caller checks the gates. A canary starts at 0.

    The step names its phase, so the same step by two operators, or by a router with an older setting, is one step.

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
    """Return to an earlier phase. In a phase whose home is A, all traffic is held there, including the canary."""
    if not setting.rule.way_back:
        raise IllegalMove(f"{setting.phase.value} has no way back: A may be shut down or behind")
    same_without_canary = to is setting.phase and setting.rule.canary and not setting.hold
    if ORDER.index(to) >= ORDER.index(setting.phase) and not same_without_canary:
        earlier = ", ".join(phase.value for phase in ORDER[: ORDER.index(setting.phase)]) or "none"
        raise IllegalMove(f"{to.value} is not before {setting.phase.value}; earlier phases: {earlier}")
    hold = PHASES[to].home is Store.A
    cohorts = sent_home(setting.cohorts) if hold else setting.cohorts
    after = replace(setting, generation=setting.generation + 1, phase=to, canary_permille=0, hold=hold, rehearsal=())
    return _shadowed(replace(after, cohorts=cohorts))


def _shadowed(setting: Setting) -> Setting:
    """Reset the comparison in a phase that compares no reads."""
    if setting.rule.shadow or not setting.shadow_permille:
        return setting
    return replace(setting, shadow_permille=0, shadow_same=False, shadow_since=setting.generation)


def set_canary(setting: Setting, permille: int) -> Setting:
    """Set the thousandths of the buckets that go to B. Raises IllegalMove in a phase without a canary."""
    if not 0 <= permille <= CANARY_FULL:
        raise IllegalMove(f"canary: {permille / 10:g} % is not valid: 0 to 100 %, in steps of 0.1 %")
    if not setting.rule.canary:
        phases = ", ".join(phase.value for phase, rule in PHASES.items() if rule.canary)
        raise IllegalMove(f"a canary steers only in {phases}; the phase is {setting.phase.value}")
    if setting.hold and permille:
        raise IllegalMove("traffic is held at A since a rollback: lift the hold first (baton hold lift)")
    return replace(setting, generation=setting.generation + 1, canary_permille=permille, rehearsal=())


def set_shadow(setting: Setting, permille: int, *, same: bool = False) -> Setting:
    """Set the thousandths of the reads that are compared; counts start again. Raises IllegalMove in a phase without
    comparison."""
    if not 0 <= permille <= SHADOW_FULL:
        raise IllegalMove(f"shadow: {permille / 10:g} % is not valid: 0 to 100 %, in steps of 0.1 %")
    if permille and not setting.rule.shadow:
        phases = ", ".join(phase.value for phase, rule in PHASES.items() if rule.shadow)
        raise IllegalMove(f"reads are compared only in {phases}; the phase is {setting.phase.value}")
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
    """The same setting in the next generation, for a journal entry about another change."""
    return replace(setting, generation=setting.generation + 1)


def set_flag(setting: Setting, name: str, value: bool | None) -> Setting:
    """Set a flag: True to B, False to A, None unsets it. The caller checks the name.

    Raises IllegalMove in a phase in which no call may go to A.
    """
    if value is False and not setting.rule.way_back:
        raise IllegalMove(f"{name}: in {setting.phase.value} no call may go to A: it may be shut down or behind")
    flags = {key: kept for key, kept in setting.flags if key != name}
    if value is not None:
        flags[name] = value
    return replace(setting, generation=setting.generation + 1, flags=tuple(sorted(flags.items())))


def begin_rehearsal(setting: Setting, buckets: tuple[int, ...]) -> Setting:
    """Move buckets to the other store until the rehearsal ends, or phase or canary change. Raises IllegalMove."""
    if not setting.rule.rehearses:
        phases = ", ".join(phase.value for phase, rule in PHASES.items() if rule.rehearses)
        raise IllegalMove(
            f"a rehearsal needs a phase in which both stores take traffic: {phases}; the phase is {setting.phase.value}"
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

"""The phase rail, the hold, and the alerts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.core.phase import ORDER, PHASES, Phase
from services.router.core.runbooks import BY_NAME, of_line
from services.router.core.setting_message import phase_name
from services.router.web.view.words import duration, percent, seconds_of, stamp


@dataclass(frozen=True, slots=True)
class Step:
    """One phase in the rail."""

    name: str
    state: str
    """done, now, next or ahead."""
    answers: str
    """The store that answers in it."""


@dataclass(frozen=True, slots=True)
class Since:
    """The change that entered the phase."""

    ago: str
    time: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Head:
    phase: str
    sentence: str
    """The state in one sentence."""
    generation: int
    steps: Sequence[Step]
    since: Since | None
    hold: bool
    hold_reason: str
    """Why traffic is held, by the latest rollback without a person; "" if a person did it."""
    alerts: Sequence[tuple[str, str]]
    """Each with its runbook, "" if it has none."""
    control_away: str
    """The runbook while the control store is away; "" otherwise."""
    next: str
    """The next phase; "" if there is none."""
    blocked: str
    can_advance: bool
    """Every gate of the next step passes."""
    back_to: Sequence[str]
    """Phases that a rollback can enter, the likeliest first."""
    compares: bool
    """Reads may be compared in this phase."""
    rehearses: bool
    """A rehearsal may move buckets now."""
    automatic: str
    """The assessment of automatic rollback, in words."""


def head(status: pb.GetStatusResponse, now: float) -> Head:
    """`now`: UNIX time in seconds."""
    setting = status.setting
    phase = phase_name(setting.phase)
    at_b = status.permille_at_b if status.HasField("permille_at_b") else None
    last = status.last_automatic if status.HasField("last_automatic") else None
    return Head(
        phase=phase.value,
        sentence=_sentence(phase, setting, at_b),
        generation=setting.generation,
        steps=_steps(phase, hold=setting.hold),
        since=_since(status, now),
        hold=setting.hold,
        hold_reason=last.reason if last is not None and last.after.generation == setting.generation else "",
        alerts=[(alert, of_line(alert)) for alert in status.alerts],
        control_away=BY_NAME["control-store-down"].path if status.setting_stale else "",
        next=phase_name(status.next).value if status.next else "",
        blocked=status.blocked,
        can_advance=bool(status.next) and not status.blocked,
        back_to=_back_to(phase, setting),
        compares=PHASES[phase].shadow,
        rehearses=PHASES[phase].rehearses and not setting.hold,
        automatic=status.automatic_rollback,
    )


def _sentence(phase: Phase, setting: pb.Setting, permille_at_b: int | None) -> str:
    if setting.hold:
        return "All traffic is held at A since a rollback."
    words = {
        Phase.OFF: "A answers every call. B follows by the event log.",
        Phase.SHADOW: "A answers every call. Sampled reads are compared with B.",
        Phase.DUAL_WRITE: f"B owns the canary, {percent(setting.canary_permille)} % of the buckets; A owns the rest.",
        Phase.DUAL_READ: f"Every bucket goes to B; {percent(permille_at_b)} % have arrived.",
        Phase.CUTOVER: "B answers every call. A follows as a hot standby.",
        Phase.DEPRECATED: "B answers every call. A may be shut down; there is no way back.",
    }
    return words[phase]


def _steps(phase: Phase, *, hold: bool) -> list[Step]:
    at = ORDER.index(phase)
    states = {at: "now", at + 1: "ahead" if hold else "next"}
    return [
        Step(one.value, states.get(index, "done" if index < at else "ahead"), PHASES[one].answers)
        for index, one in enumerate(ORDER)
    ]


def _since(status: pb.GetStatusResponse, now: float) -> Since | None:
    if not status.HasField("phase_time"):
        return None
    ago = duration(max(0.0, float(round(now - seconds_of(status.phase_time)))))
    return Since(ago, stamp(status.phase_time), status.phase_actor, status.phase_reason)


def _back_to(phase: Phase, setting: pb.Setting) -> list[str]:
    if not PHASES[phase].way_back:
        return []
    earlier = [one.value for one in ORDER[: ORDER.index(phase)]]
    if PHASES[phase].canary and not setting.hold:
        # Back to the same phase, without its canary.
        earlier.append(phase.value)
    # Where automatic rollback goes.
    first = [name for name in earlier if name == Phase.DUAL_WRITE.value]
    return [*first, *(name for name in earlier[::-1] if name not in first)]

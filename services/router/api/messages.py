"""Conversion between messages of the control API and values of flows and core."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import InvalidField
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.control.port import JournalEntry
from services.router.core.gates import GateResult, Verdict
from services.router.core.phase import Phase, Setting
from services.router.core.runbooks import of_gate
from services.router.core.setting_message import cohort_to_pb
from services.router.flows.moving.mover import Handover
from services.router.flows.steering.diagnose import Finding, Level
from services.router.flows.steering.flags import FlagView

PHASE_NUMBERS = {phase: pb.Phase.Value(f"PHASE_{phase.value}") for phase in Phase}
PHASES_BY_NUMBER = {number: phase for phase, number in PHASE_NUMBERS.items()}
VERDICT_NUMBERS = {verdict: pb.Verdict.Value(f"VERDICT_{verdict.value}") for verdict in Verdict}
LEVEL_NUMBERS = {level: pb.Finding.Level.Value(f"LEVEL_{level.value}") for level in Level}


def phase_from_pb(number: int) -> Phase:
    """Raises InvalidField."""
    phase = PHASES_BY_NUMBER.get(number)  # type: ignore[call-overload]
    if phase is None:
        raise InvalidField("to", number, "one of " + ", ".join(f"PHASE_{phase.value}" for phase in Phase))
    return phase  # type: ignore[no-any-return]


def known(value: float) -> float | None:
    """Return the value, or None if it is negative, which means unknown."""
    return value if value >= 0 else None


def timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(int(seconds * 1e9))
    return made


def setting_to_pb(setting: Setting) -> pb.Setting:
    return pb.Setting(
        generation=setting.generation,
        phase=PHASE_NUMBERS[setting.phase],
        canary_permille=setting.canary_permille,
        hold=setting.hold,
        rehearsal=setting.rehearsal,
        flags=dict(setting.flags),
        shadow_permille=setting.shadow_permille,
        shadow_same=setting.shadow_same,
        limits=dict(setting.limits),
        serves_subjects=setting.serves_subjects,
        two_person=setting.two_person,
        cohorts=[cohort_to_pb(cohort) for cohort in setting.cohorts],
    )


def gates_to_pb(results: Sequence[GateResult]) -> list[pb.Gate]:
    return [
        pb.Gate(
            name=result.name,
            sentence=result.sentence,
            verdict=VERDICT_NUMBERS[result.verdict],
            evidence=result.evidence,
            threshold=result.threshold,
            runbook=result.runbook,
            runbook_page=of_gate(result.name),
            samples=result.samples,
            least_samples=result.least_samples,
            seconds_left=result.seconds_left,
        )
        for result in results
    ]


def entry_to_pb(entry: JournalEntry) -> pb.JournalEntry:
    return pb.JournalEntry(
        generation=entry.after.generation,
        time=timestamp(entry.time_seconds),
        actor=entry.actor,
        action=entry.action,
        reason=entry.reason,
        before=setting_to_pb(entry.before),
        after=setting_to_pb(entry.after),
        gates=gates_to_pb(entry.gates),
        overridden=entry.overridden,
    )


def handover_to_pb(handover: Handover) -> pb.Progress:
    return pb.Progress(
        job="handover",
        running=handover.running,
        done=handover.done,
        total=handover.total,
        rate=handover.rate,
        eta_seconds=known(handover.eta_seconds),
        note=handover.note,
    )


def finding_to_pb(finding: Finding) -> pb.Finding:
    return pb.Finding(
        level=LEVEL_NUMBERS[finding.level], subject=finding.subject, text=finding.text, remedy=finding.remedy
    )


def flag_to_pb(view: FlagView) -> pb.Flag:
    return pb.Flag(
        name=view.name,
        value=view.value,
        source=view.source,
        good_seconds=view.good_seconds_ago,
        trouble=view.trouble,
    )

"""The setting of the migration from its message in the control API. Pure."""

from __future__ import annotations

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.core.cohorts import Cohort
from services.router.core.phase import Phase, Setting


def setting_from_pb(message: pb.Setting) -> Setting:
    return Setting(
        generation=message.generation,
        phase=phase_name(message.phase),
        canary_permille=message.canary_permille,
        shadow_permille=message.shadow_permille,
        shadow_same=message.shadow_same,
        hold=message.hold,
        rehearsal=tuple(message.rehearsal),
        flags=tuple(sorted(message.flags.items())),
        limits=tuple(sorted(message.limits.items())),
        serves_subjects=message.serves_subjects,
        two_person=message.two_person,
        cohorts=tuple(Cohort(one.name, one.names, one.account, one.permille) for one in message.cohorts),
    )


def phase_name(number: pb.Phase.ValueType) -> Phase:
    return Phase[pb.Phase.Name(number).removeprefix("PHASE_")]

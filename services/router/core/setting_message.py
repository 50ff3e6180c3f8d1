"""The setting of the migration from its message in the control API, and its cohorts. Pure."""

from __future__ import annotations

from libs.pb.baton.control.v1 import cohorts_pb2
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
        cohorts=tuple(map(cohort_from_pb, message.cohorts)),
    )


def cohort_from_pb(message: cohorts_pb2.Cohort) -> Cohort:
    return Cohort(message.name, message.names, message.account, message.permille)


def cohort_to_pb(cohort: Cohort) -> cohorts_pb2.Cohort:
    return cohorts_pb2.Cohort(name=cohort.name, names=cohort.names, account=cohort.account, permille=cohort.permille)


def phase_name(number: pb.Phase.ValueType) -> Phase:
    return Phase[pb.Phase.Name(number).removeprefix("PHASE_")]

"""The operator's API: fields in, flows, fields out. Errors are raised as they are; the server makes them statuses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from libs.clock import Clock
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import control_pb2_grpc
from libs.rpc.errors import Context
from libs.rpc.server import TypedService
from libs.telemetry.vitals import vitals
from services.router.api.approvals import ApprovalMethods
from services.router.api.messages import (
    PHASE_NUMBERS,
    entry_to_pb,
    finding_to_pb,
    gates_to_pb,
    phase_from_pb,
    setting_to_pb,
    timestamp,
)
from services.router.api.roles import actor_of, guarded
from services.router.flows.steering.diagnose import Doctor
from services.router.flows.steering.migration import Decision, Migration

SERVICE = "baton.control.v1.ControlService"
DEFAULT_JOURNAL_ENTRIES = 50

URGENT = frozenset({"GetStatus", "RollbackPhase", "SetFlag", "SetCanary"})
"""An operator can still look and go back while other calls fill the listener."""


class PhaseMethods:
    """Methods of the control API."""

    def __init__(self, migration: Migration) -> None:
        self._migration = migration

    async def PlanPhase(self, request: pb.PlanPhaseRequest, context: Context) -> pb.PlanPhaseResponse:  # noqa: N802
        plan = await self._migration.plan()
        return pb.PlanPhaseResponse(
            setting=setting_to_pb(plan.setting),
            next=PHASE_NUMBERS[plan.next] if plan.next else pb.PHASE_UNSPECIFIED,
            gates=gates_to_pb(plan.results),
            blocked=plan.blocked,
            effect=plan.effect,
        )

    async def AdvancePhase(  # noqa: N802
        self, request: pb.AdvancePhaseRequest, context: Context
    ) -> pb.AdvancePhaseResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation, request.override)
        to = phase_from_pb(request.to)
        setting, results = await self._migration.advance(decision, to, request.confirm)
        return pb.AdvancePhaseResponse(setting=setting_to_pb(setting), gates=gates_to_pb(results))

    async def RollbackPhase(  # noqa: N802
        self, request: pb.RollbackPhaseRequest, context: Context
    ) -> pb.RollbackPhaseResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.rollback(decision, phase_from_pb(request.to))
        return pb.RollbackPhaseResponse(setting=setting_to_pb(setting))

    async def SetCanary(self, request: pb.SetCanaryRequest, context: Context) -> pb.SetCanaryResponse:  # noqa: N802
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        setting = await self._migration.set_canary(decision, request.permille)
        return pb.SetCanaryResponse(setting=setting_to_pb(setting))

    async def LiftHold(self, request: pb.LiftHoldRequest, context: Context) -> pb.LiftHoldResponse:  # noqa: N802
        setting = await self._migration.lift_hold(Decision(actor_of(request.actor), request.reason, request.generation))
        return pb.LiftHoldResponse(setting=setting_to_pb(setting))

    async def ListJournal(self, request: pb.ListJournalRequest, context: Context) -> pb.ListJournalResponse:  # noqa: N802
        entries = await self._migration.journal(request.limit or DEFAULT_JOURNAL_ENTRIES)
        return pb.ListJournalResponse(entries=[entry_to_pb(entry) for entry in entries])


class DoctorMethods:
    """Methods of the control API."""

    def __init__(self, doctor: Doctor, clock: Clock) -> None:
        self._doctor = doctor
        self._clock = clock

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> pb.DiagnoseResponse:  # noqa: N802
        findings = await self._doctor.diagnose()
        return pb.DiagnoseResponse(
            findings=[finding_to_pb(finding) for finding in findings], now_time=timestamp(self._clock.now())
        )

    async def GetVitals(self, request: pb.GetVitalsRequest, context: Context) -> pb.GetVitalsResponse:  # noqa: N802
        return pb.GetVitalsResponse(vitals=vitals())


def control_service(parts: Sequence[object], approvals: ApprovalMethods) -> TypedService:
    """Return the service for `libs.rpc.server.Server`, on a listener of its own. Each method of the service is in
    exactly one of the parts, behind the check of its role and the two-person rule of `approvals`. Raises ValueError."""
    found = {}
    for method in pb.DESCRIPTOR.services_by_name["ControlService"].methods:
        having = [part for part in (*parts, approvals) if hasattr(part, method.name)]
        if len(having) != 1:
            raise ValueError(f"{method.name} is in {len(having)} parts of the control API, it must be in one")
        behind_rule = approvals.guarded(method.name, getattr(having[0], method.name))
        found[method.name] = guarded(method.name, behind_rule)
    return TypedService(SERVICE, SimpleNamespace(**found), control_pb2_grpc.add_ControlServiceServicer_to_server)

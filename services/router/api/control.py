"""The operator's API: fields in, flows, fields out. Errors are raised as they are; the server makes them statuses."""

from __future__ import annotations

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import control_pb2_grpc
from libs.rpc.errors import Context
from libs.rpc.server import TypedService
from services.router.api.conflicts import ConflictMethods
from services.router.api.events import EventMethods
from services.router.api.flags import FlagMethods
from services.router.api.jobs import JobMethods
from services.router.api.ledger import LedgerMethods
from services.router.api.limits import LimitMethods
from services.router.api.messages import (
    PHASE_NUMBERS,
    entry_to_pb,
    finding_to_pb,
    gates_to_pb,
    phase_from_pb,
    setting_to_pb,
    timestamp,
)
from services.router.api.parts import Parts
from services.router.api.probe import ProbeMethods
from services.router.api.records import RecordMethods
from services.router.api.rehearsal import ManeuverMethods
from services.router.api.shadow import ShadowMethods
from services.router.api.watch import WatchMethods
from services.router.flows.steering.diagnose import diagnose
from services.router.flows.steering.migration import Decision

SERVICE = "baton.control.v1.ControlService"
DEFAULT_JOURNAL_ENTRIES = 50

URGENT = frozenset({"GetStatus", "RollbackPhase", "SetFlag", "SetCanary"})
"""An operator can still look and go back while other calls fill the listener."""


class ControlServicer(
    ConflictMethods,
    EventMethods,
    FlagMethods,
    JobMethods,
    ManeuverMethods,
    ProbeMethods,
    LedgerMethods,
    LimitMethods,
    RecordMethods,
    ShadowMethods,
    WatchMethods,
    control_pb2_grpc.ControlServiceServicer,
):
    """One router's control API. The listener, with its token, tells who calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._conflicts = parts
        self._repair = parts
        self._events = parts
        self._flags = parts
        self._watched = parts
        self._shadow = parts
        self._ledger = parts
        self._limits = parts
        self._probed = parts
        self._work = parts
        self._maneuvers = parts

    async def PlanPhase(self, request: pb.PlanPhaseRequest, context: Context) -> pb.PlanPhaseResponse:  # noqa: N802
        plan = await self._parts.migration.plan()
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
        decision = Decision(request.actor, request.reason, request.generation, request.override)
        to = phase_from_pb(request.to)
        setting, results = await self._parts.migration.advance(decision, to, request.confirm)
        return pb.AdvancePhaseResponse(setting=setting_to_pb(setting), gates=gates_to_pb(results))

    async def RollbackPhase(  # noqa: N802
        self, request: pb.RollbackPhaseRequest, context: Context
    ) -> pb.RollbackPhaseResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        setting = await self._parts.migration.rollback(decision, phase_from_pb(request.to))
        return pb.RollbackPhaseResponse(setting=setting_to_pb(setting))

    async def SetCanary(self, request: pb.SetCanaryRequest, context: Context) -> pb.SetCanaryResponse:  # noqa: N802
        decision = Decision(request.actor, request.reason, request.generation)
        setting = await self._parts.migration.set_canary(decision, request.permille)
        return pb.SetCanaryResponse(setting=setting_to_pb(setting))

    async def LiftHold(self, request: pb.LiftHoldRequest, context: Context) -> pb.LiftHoldResponse:  # noqa: N802
        setting = await self._parts.migration.lift_hold(Decision(request.actor, request.reason, request.generation))
        return pb.LiftHoldResponse(setting=setting_to_pb(setting))

    async def ListJournal(self, request: pb.ListJournalRequest, context: Context) -> pb.ListJournalResponse:  # noqa: N802
        entries = await self._parts.migration.journal(request.limit or DEFAULT_JOURNAL_ENTRIES)
        return pb.ListJournalResponse(entries=[entry_to_pb(entry) for entry in entries])

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> pb.DiagnoseResponse:  # noqa: N802
        findings = await diagnose(self._parts.around, self._parts.clock)
        return pb.DiagnoseResponse(
            findings=[finding_to_pb(finding) for finding in findings], now_time=timestamp(self._parts.clock.now())
        )


def control_service(parts: Parts) -> TypedService:
    """For `libs.rpc.server.Server`, on a listener of its own with a token of its own."""
    return TypedService(SERVICE, ControlServicer(parts), control_pb2_grpc.add_ControlServiceServicer_to_server)

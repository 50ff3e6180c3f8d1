"""The part of the operator's API for maneuvers, walks of the canary and rehearsals; and for the vitals."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1.control_pb2_grpc import ControlServiceServicer
from libs.rpc.errors import Context
from libs.telemetry.vitals import Gauges, vitals
from services.router.api.messages import progress_to_pb, timestamp
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.rehearsal import Rehearsals, Result
from services.router.flows.steering.migration import Decision


@dataclass(frozen=True, slots=True)
class Maneuvers:
    """The flows behind this part."""

    canary_auto: CanaryAuto
    rehearsals: Rehearsals
    gauges: Gauges = field(default_factory=Gauges)


class ManeuverMethods(ControlServiceServicer):
    """To be mixed into the servicer of the whole API."""

    _maneuvers: Maneuvers

    async def StartCanaryAuto(  # noqa: N802
        self, request: pb.StartCanaryAutoRequest, context: Context
    ) -> pb.StartCanaryAutoResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        progress = await self._maneuvers.canary_auto.start(decision, request.plan)
        return pb.StartCanaryAutoResponse(progress=progress_to_pb(progress))

    async def StopCanaryAuto(  # noqa: N802
        self, request: pb.StopCanaryAutoRequest, context: Context
    ) -> pb.StopCanaryAutoResponse:
        progress = await self._maneuvers.canary_auto.stop(request.actor)
        return pb.StopCanaryAutoResponse(progress=progress_to_pb(progress))

    async def StartRehearsal(  # noqa: N802
        self, request: pb.StartRehearsalRequest, context: Context
    ) -> pb.StartRehearsalResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        progress = await self._maneuvers.rehearsals.start(decision, request.buckets)
        return pb.StartRehearsalResponse(progress=progress_to_pb(progress))

    async def GetVitals(self, request: pb.GetVitalsRequest, context: Context) -> pb.GetVitalsResponse:  # noqa: N802
        return pb.GetVitalsResponse(vitals=vitals(self._maneuvers.gauges))


def fill_status(answer: pb.GetStatusResponse, maneuvers: Maneuvers) -> None:
    """This part of the status."""
    answer.canary_auto.CopyFrom(progress_to_pb(maneuvers.canary_auto.progress))
    answer.rehearsal.CopyFrom(progress_to_pb(maneuvers.rehearsals.progress))
    if maneuvers.rehearsals.last is not None:
        answer.last_rehearsal.CopyFrom(_result_to_pb(maneuvers.rehearsals.last))


def _result_to_pb(result: Result) -> pb.Rehearsal:
    return pb.Rehearsal(
        id=result.id,
        actor=result.by,
        passed=result.passed,
        note=result.note,
        finished_time=timestamp(result.finished_seconds),
        buckets=result.buckets,
        records=result.records,
        there_seconds=result.there_seconds,
        back_seconds=result.back_seconds,
        calls=result.calls,
        errors=result.errors,
        handoffs=result.handoffs,
    )

"""The part of the operator's API for walks of the canary and rehearsals, which are jobs; and for the vitals."""

from __future__ import annotations

from typing import Protocol

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from libs.telemetry.vitals import vitals
from services.router.api.jobs import JobParts, job_to_pb
from services.router.api.messages import known, timestamp
from services.router.core.canary import parse_plan
from services.router.core.jobs import Job
from services.router.flows.jobs import canary, rehearsal
from services.router.flows.jobs.orders import JobOrders, Order
from services.router.flows.jobs.rehearsal import Rehearsals
from services.router.flows.steering.migration import Decision


class ManeuverParts(JobParts, Protocol):
    """The flows behind these methods."""

    @property
    def rehearsals(self) -> Rehearsals: ...


class ManeuverMethods:
    """Part of the control API's servicer."""

    _maneuvers: ManeuverParts

    async def StartCanaryAuto(  # noqa: N802
        self, request: pb.StartCanaryAutoRequest, context: Context
    ) -> pb.StartCanaryAutoResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        job = await self._job_orders.start(decision, canary.NAME, {canary.PLAN: request.plan}, 0.0)
        return pb.StartCanaryAutoResponse(progress=_walk(job), job=job_to_pb(job, self._maneuvers.jobs))

    async def StopCanaryAuto(  # noqa: N802
        self, request: pb.StopCanaryAutoRequest, context: Context
    ) -> pb.StopCanaryAutoResponse:
        jobs, decision = self._maneuvers.jobs, Decision(request.actor, request.reason)
        decision.check()
        job = await jobs.under_way(canary.NAME)
        if job is None:
            return pb.StopCanaryAutoResponse(progress=_walk(jobs.latest(canary.NAME)))
        job = await self._job_orders.change(decision, Order.CANCEL, job.id, 0.0)
        return pb.StopCanaryAutoResponse(progress=_walk(job), job=job_to_pb(job, jobs))

    async def StartRehearsal(  # noqa: N802
        self, request: pb.StartRehearsalRequest, context: Context
    ) -> pb.StartRehearsalResponse:
        decision = Decision(request.actor, request.reason, request.generation)
        arguments = {rehearsal.BUCKETS_WANTED: str(request.buckets)}
        job = await self._job_orders.start(decision, rehearsal.NAME, arguments, 0.0)
        return pb.StartRehearsalResponse(progress=_rehearsal(job), job=job_to_pb(job, self._maneuvers.jobs))

    async def GetVitals(self, request: pb.GetVitalsRequest, context: Context) -> pb.GetVitalsResponse:  # noqa: N802
        return pb.GetVitalsResponse(vitals=vitals())

    @property
    def _job_orders(self) -> JobOrders:
        return JobOrders(self._maneuvers.jobs, self._maneuvers.migration)


def fill_status(answer: pb.GetStatusResponse, parts: ManeuverParts) -> None:
    """This part of the status."""
    answer.canary_auto.CopyFrom(_walk(parts.jobs.latest(canary.NAME)))
    answer.rehearsal.CopyFrom(_rehearsal(parts.jobs.latest(rehearsal.NAME)))
    last = parts.rehearsals.last
    if last.job is not None and last.report is not None:
        answer.last_rehearsal.CopyFrom(_result(last.job, last.report))


def _walk(job: Job | None) -> pb.Progress:
    """Counted in steps of the plan."""
    progress = _progress("canary auto", job)
    if job is not None:
        progress.total = len(parse_plan(job.arguments[canary.PLAN]).steps)
    return progress


def _rehearsal(job: Job | None) -> pb.Progress:
    return _progress("rehearsal", job)


def _progress(name: str, job: Job | None) -> pb.Progress:
    if job is None:
        return pb.Progress(job=name)
    return pb.Progress(
        job=name,
        running=not job.ended_seconds,
        done=job.done,
        total=job.total,
        eta_seconds=known(job.eta_seconds),
        note=job.waits or job.note,
        finished_time=timestamp(job.ended_seconds) if job.ended_seconds else None,
    )


def _result(job: Job, result: rehearsal.Result) -> pb.Rehearsal:
    return pb.Rehearsal(
        id=job.id,
        actor=job.actor,
        passed=result.passed,
        note=result.note,
        finished_time=timestamp(job.ended_seconds),
        buckets=result.buckets,
        records=result.records,
        there_seconds=result.there_seconds,
        back_seconds=result.back_seconds,
        calls=result.calls,
        errors=result.errors,
        handoffs=result.handoffs,
    )

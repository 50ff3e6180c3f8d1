"""The part of the operator's API for walks of the canary and rehearsals, which are jobs."""

from __future__ import annotations

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.jobs import job_to_pb
from services.router.api.messages import known, timestamp
from services.router.api.roles import actor_of
from services.router.core.canary import parse_plan
from services.router.core.jobs import Job
from services.router.flows.jobs import canary, rehearsal
from services.router.flows.jobs.job_orders import JobAction, JobOrders
from services.router.flows.jobs.rehearsal import Rehearsals
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.migration import Decision, Migration


class RehearsalMethods:
    """Methods of the control API."""

    def __init__(self, jobs: Jobs, migration: Migration) -> None:
        self._jobs = jobs
        self._orders = JobOrders(jobs, migration)

    async def StartCanaryAuto(  # noqa: N802
        self, request: pb.StartCanaryAutoRequest, context: Context
    ) -> pb.StartCanaryAutoResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        job = await self._orders.start(decision, canary.NAME, {canary.PLAN: request.plan}, 0.0)
        return pb.StartCanaryAutoResponse(progress=_walk(job), job=job_to_pb(job, self._jobs))

    async def StopCanaryAuto(  # noqa: N802
        self, request: pb.StopCanaryAutoRequest, context: Context
    ) -> pb.StopCanaryAutoResponse:
        jobs, decision = self._jobs, Decision(actor_of(request.actor), request.reason)
        decision.check()
        job = await jobs.under_way(canary.NAME)
        if job is None:
            return pb.StopCanaryAutoResponse(progress=_walk(jobs.latest(canary.NAME)))
        job = await self._orders.change(decision, JobAction.CANCEL, job.id, 0.0)
        return pb.StopCanaryAutoResponse(progress=_walk(job), job=job_to_pb(job, jobs))

    async def StartRehearsal(  # noqa: N802
        self, request: pb.StartRehearsalRequest, context: Context
    ) -> pb.StartRehearsalResponse:
        decision = Decision(actor_of(request.actor), request.reason, request.generation)
        arguments = {rehearsal.BUCKETS_WANTED: str(request.buckets)}
        job = await self._orders.start(decision, rehearsal.NAME, arguments, 0.0)
        return pb.StartRehearsalResponse(progress=_rehearsal(job), job=job_to_pb(job, self._jobs))


def add_walk(answer: pb.GetStatusResponse, jobs: Jobs) -> None:
    """Add the progress of the canary's plan."""
    answer.canary_auto.CopyFrom(_walk(jobs.latest(canary.NAME)))


def add_rehearsal(answer: pb.GetStatusResponse, jobs: Jobs, rehearsals: Rehearsals) -> None:
    """Add the progress of the rehearsal under way, and the result of the last one."""
    answer.rehearsal.CopyFrom(_rehearsal(jobs.latest(rehearsal.NAME)))
    last = rehearsals.last
    if last.job is not None and last.report is not None:
        answer.last_rehearsal.CopyFrom(_result(last.job, last.report))


def _walk(job: Job | None) -> pb.Progress:
    """Return the progress in steps of the plan."""
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

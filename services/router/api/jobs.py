"""The part of the operator's API for jobs."""

from __future__ import annotations

import math

from libs.errors import InvalidField
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import Context
from services.router.api.messages import known, timestamp
from services.router.api.roles import actor_of
from services.router.core.jobs import Job, JobState, check_actor
from services.router.flows.jobs.job_orders import JobAction, JobOrders
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.migration import Decision, Migration

_STATES = {state: pb.Job.State.Value(f"STATE_{state.value}") for state in JobState}
_ORDERS = {pb.ChangeJobRequest.Action.Value(f"ACTION_{order.name}"): order for order in JobAction}


class JobMethods:
    """Methods of the control API."""

    def __init__(self, jobs: Jobs, migration: Migration) -> None:
        self._jobs = jobs
        self._orders = JobOrders(jobs, migration)

    async def StartJob(self, request: pb.StartJobRequest, context: Context) -> pb.StartJobResponse:  # noqa: N802
        decision = Decision(actor_of(request.actor), request.reason)
        job = await self._orders.start(decision, request.kind, dict(request.arguments), _finite(request.rate))
        return pb.StartJobResponse(job=job_to_pb(job, self._jobs))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        jobs = self._jobs
        return pb.ListJobsResponse(jobs=[job_to_pb(job, jobs) for job in jobs.view])

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:  # noqa: N802
        jobs = self._jobs
        return pb.GetJobResponse(job=job_to_pb(await jobs.job(request.id), jobs))

    async def ChangeJob(self, request: pb.ChangeJobRequest, context: Context) -> pb.ChangeJobResponse:  # noqa: N802
        check_actor(request.actor)
        order = _ORDERS.get(request.action)
        if order is None:
            names = ", ".join(name for name in pb.ChangeJobRequest.Action.keys()[1:])
            raise InvalidField("action", request.action, f"one of {names}")
        decision = Decision(actor_of(request.actor), request.reason)
        job = await self._orders.change(decision, order, request.id, _finite(request.rate))
        return pb.ChangeJobResponse(job=job_to_pb(job, self._jobs))


def _finite(rate: float) -> float:
    """Raises InvalidField."""
    if not math.isfinite(rate):
        raise InvalidField("rate", rate, "a finite number per second")
    return rate


def latest_jobs(jobs: Jobs) -> list[pb.Job]:
    """Return the newest job of each lane, for the status."""
    newest: dict[str, Job] = {}
    for job in jobs.view:
        newest.setdefault(job.lane, job)
    return [job_to_pb(job, jobs) for job in newest.values()]


def job_to_pb(job: Job, jobs: Jobs) -> pb.Job:
    return pb.Job(
        id=job.id,
        kind=job.kind,
        lane=job.lane,
        arguments=job.arguments,
        state=_STATES[job.state],
        unit=jobs.unit(job.kind),
        done=job.done,
        total=job.total or None,
        rate=job.per_second,
        eta_seconds=known(job.eta_seconds),
        waits=job.waits,
        note=job.note,
        wanted_rate=job.rate or None,
        actor=job.actor,
        runner=job.runner,
        create_time=timestamp(job.created_seconds),
        end_time=timestamp(job.ended_seconds) if job.ended_seconds else None,
        report=job.report,
        reason=job.reason,
    )

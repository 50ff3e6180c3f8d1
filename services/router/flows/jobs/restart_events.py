"""Going on after the event log was replaced: both feeds start at its end, and the records are copied.

A feed that has stopped does not know which events it has missed, and an event of another log proves nothing about who
owns a record. So no event before the end is read. Whatever had been published is in its owner's row; a reconcile job
compares all records and copies, from the owner's store to the other one, in both directions. It never makes an owner:
a record that its owner has released is taken by a handoff, as ever. Until that job has finished, a seizure would lose
writes that only their owner's store has: see `services.router.flows.jobs.log_gap`.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from libs.errors import BatonError, InvalidField
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.control.codec import number_of_job
from services.router.core.jobs import Job, JobUnderWay
from services.router.flows.jobs.log_gap import GapRecords, open_gap
from services.router.flows.jobs.reconcile_job import NAME as RECONCILE
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.stores import Stores

RESTARTED = "feeds restarted"
"""In the journal."""
CALL_SECONDS = 10.0


class NothingReplaced(BatonError):
    """No store says that the event log was replaced: nothing was changed"""

    code = "FAILED_PRECONDITION"
    reason = "LOG_NOT_REPLACED"


class Restarted(NamedTuple):
    job: str
    skipped: int
    """Events in the log that no store reads."""


class RestartEvents:
    """Over both stores."""

    def __init__(self, stores: Stores, jobs: Jobs, migration: Migration, control: GapRecords) -> None:
        self._stores = stores
        self._jobs = jobs
        self._migration = migration
        self._control = control

    async def restart(self, decision: Decision) -> Restarted:
        """Safe to repeat until it has succeeded. Raises InvalidField, NothingReplaced, JobUnderWay, ControlUnavailable,
        Outdated, and what the stores' clients raise."""
        if not decision.reason.strip():
            raise InvalidField("reason", decision.reason, "why the log was replaced; it is kept in the journal")
        clients = list(self._stores.values())
        statuses = await asyncio.gather(
            *(one.ask(one.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS) for one in clients)
        )
        replaced = [status.feed.log_replaced for status in statuses if status.feed.log_replaced]
        if not replaced:
            raise NothingReplaced
        wanted = await self._jobs.wanted(RECONCILE, {}, decision.actor)
        if (early := await self._jobs.check_lane(wanted)) is not None:
            raise _too_early(early, "nothing was changed")
        await self._migration.note(decision, RESTARTED)
        await open_gap(self._control)
        answers = [await one.ask(one.replication.RestartFeed, pb.RestartFeedRequest(), CALL_SECONDS) for one in clients]
        # Once more: a job that was added before the last feed was restarted may have passed over what that feed skips.
        opened = await open_gap(self._control)
        job = await self._jobs.add(wanted)
        if number_of_job(job.id) <= opened:
            raise _too_early(job, "the feeds are restarted; then run baton reconcile")
        return Restarted(job.id, max(sum(answer.next_offsets.values()) for answer in answers))


def _too_early(job: Job, outcome: str) -> JobUnderWay:
    hint = f"wait for its end, or end it: baton jobs cancel {job.id}"
    return JobUnderWay(f"{job.id} began before the feeds are restarted, so it may miss records: {hint}; {outcome}")

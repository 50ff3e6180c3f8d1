"""The restart after the event log was replaced: both feeds start at the end of the new log, and records are copied.

A stopped feed cannot tell which events it has missed, and an event of another log is no evidence of a record's owner.
So the feeds skip all events before the end. Every published change is in its owner's row: a reconcile job compares all
records and copies them from the owner's store to the other one, in both directions. It never makes a store an owner; a
released record is taken by a handoff as usual. Until that job has finished, a seizure would lose writes that only their
owner's store has: see `services.router.flows.jobs.log_gap`.
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
"""Action in the journal."""
CALL_SECONDS = 10.0


class NothingReplaced(BatonError):
    """No store reports that the event log was replaced; nothing was changed"""

    code = "FAILED_PRECONDITION"
    reason = "LOG_NOT_REPLACED"


class Restarted(NamedTuple):
    job: str
    skipped: int
    """Number of events in the log that neither store reads."""


class RestartEvents:
    """The restart of both stores' feeds."""

    def __init__(self, stores: Stores, jobs: Jobs, migration: Migration, control: GapRecords) -> None:
        self._stores = stores
        self._jobs = jobs
        self._migration = migration
        self._control = control

    async def restart(self, decision: Decision) -> Restarted:
        """Restart the feeds and start a reconcile job. Safe to repeat until it succeeds. Raises InvalidField,
        NothingReplaced, JobUnderWay, ControlUnavailable, Outdated, and the stores' errors."""
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
        # Again: a job that was added before the last feed was restarted may not have compared the skipped changes.
        opened = await open_gap(self._control)
        job = await self._jobs.add(wanted)
        if number_of_job(job.id) <= opened:
            raise _too_early(job, "the feeds are restarted: run baton reconcile after that job")
        return Restarted(job.id, max(sum(answer.next_offsets.values()) for answer in answers))


def _too_early(job: Job, outcome: str) -> JobUnderWay:
    hint = f"wait for its end, or cancel it: baton jobs cancel {job.id}"
    return JobUnderWay(f"{job.id} began before the restart of the feeds, so it may miss records: {hint}; {outcome}")

"""Operators' orders for jobs. Each order is journaled with its actor and reason before it takes effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from functools import partial

from libs.text import plain
from services.router.core import jobs as rules
from services.router.core.jobs import Job
from services.router.flows.jobs.runner import Jobs
from services.router.flows.steering.migration import Decision, Migration

_SHOWN_CHARACTERS = 300
"""Maximum length of the arguments in a journal entry."""


class JobAction(Enum):
    """An order to an existing job. The value is the action in the journal."""

    PAUSE = "job paused"
    RESUME = "job resumed"
    CANCEL = "job cancelled"
    TUNE = "job tuned"


ASKED = "job requested"
"""Action in the journal."""


class JobOrders:
    """Orders with a journal entry. Raises Outdated and the errors of `Jobs`: before the journal entry is written,
    unless a concurrent order changes the job in between."""

    def __init__(self, jobs: Jobs, migration: Migration) -> None:
        self._jobs = jobs
        self._migration = migration

    async def start(self, decision: Decision, kind: str, arguments: Mapping[str, str], rate: float) -> Job:
        wanted = await self._jobs.wanted(kind, arguments, decision.actor, rate, reason=decision.reason)
        await self._jobs.check_lane(wanted)
        given = ", ".join(f"{name} {value}" for name, value in sorted(arguments.items()) if value)
        await self._note(decision, ASKED, f"{wanted.kind}: {given}" if given else wanted.kind)
        return await self._jobs.add(wanted)

    async def change(self, decision: Decision, order: JobAction, job_id: str, rate: float) -> Job:
        """`rate`: the new rate, for TUNE."""
        jobs, actor, what = self._jobs, decision.actor, job_id
        job = await jobs.job(job_id)
        match order:
            case JobAction.PAUSE:
                _, done = rules.pause(job, actor), partial(jobs.pause, job_id, actor)
            case JobAction.RESUME:
                _, done = rules.resume(job, actor), partial(jobs.resume, job_id, actor)
            case JobAction.CANCEL:
                _, done = rules.cancel(job, actor, 0.0), partial(jobs.cancel, job_id, actor)
            case JobAction.TUNE:
                _, done = rules.tune(job, rate), partial(jobs.tune, job_id, rate)
                what = f"{job_id}: {f'at most {plain(rate)}/s' if rate else 'as fast as traffic allows'}"
        await self._note(decision, order.value, what)
        return await done()

    async def _note(self, decision: Decision, action: str, what: str) -> None:
        what = " ".join(what.split())[:_SHOWN_CHARACTERS]
        reason = f"{decision.reason} ({what})" if decision.reason else what
        await self._migration.note(replace(decision, reason=reason), action)

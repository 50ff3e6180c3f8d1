"""The gap that `baton events restart` leaves: events of the former log that a store has never read.

Until a reconcile job has copied their records, only the owner's store has these writes, `ack: logged` ones included. A
seizure would lose them in silence. So the control store keeps where the gap began, as a number of a job. The gap stands
until a reconcile job with a higher number, added after both feeds were restarted, has finished and left no difference.
A job that failed, was cancelled, or only compares does not close it.

The two marks are separate values and neither is removed: a router that writes late takes no mark of a later gap away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from libs.errors import BatonError
from libs.tasks import Loop
from services.router.control.codec import number_of_job
from services.router.control.port import JobRecords, RememberedValues
from services.router.core.differences import Findings
from services.router.core.evidence import Evidence
from services.router.core.jobs import Job, JobState
from services.router.flows.jobs.reconcile_job import NAME

OPENED = "log gap opened"
CLOSED = "log gap closed"
"""Names of the two marks; each value is the number of a job. Jobs are kept for a while only, so the second one is
written down as well."""
INTERVAL_SECONDS = 1.0


class GapRecords(JobRecords, RememberedValues, Protocol):
    """Part of the control store."""


class GapStands(BatonError):
    """Writes of before `baton events restart` may be at one store only; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "LOG_GAP"


async def open_gap(control: GapRecords) -> int:
    """From now on the gap stands. Returns the number that the closing job's must exceed. Raises ControlUnavailable."""
    newest = max((number_of_job(job.id) for job in await control.jobs()), default=0)
    await control.remember(OPENED, str(newest))
    return newest


async def gap(control: GapRecords) -> str:
    """Why a seizure may lose acknowledged writes, and the job to wait for; "" if no gap stands. Raises
    ControlUnavailable, JobNotFound."""
    opened = await _number(control, OPENED)
    if opened is None or (await _number(control, CLOSED) or 0) > opened:
        return ""
    later = [job for job in await control.jobs() if number_of_job(job.id) > opened and _copies(job)]
    left = ""
    for job in later:
        if job.state is not JobState.FINISHED:
            continue
        findings = Findings.from_json((await control.job(job.id)).report)
        if not findings.left:
            await control.remember(CLOSED, str(number_of_job(job.id)))
            return ""
        left = left or f"{job.id} has left {findings.left} differences (baton jobs show {job.id}): resolve them, then "
    why = "writes that were published before the feeds were restarted may be at one store only"
    return f"{why}: {_remedy(later) or f'{left}run baton reconcile and wait for its end'}"


async def _number(control: GapRecords, mark: str) -> int | None:
    found = await control.remembered(mark)
    return None if found is None else int(found)


def _copies(job: Job) -> bool:
    return job.kind == NAME and job.arguments.get("repair", "yes") == "yes"


def _remedy(later: Sequence[Job]) -> str:
    """`later`: at most one of them has not ended."""
    for job in later:
        if job.state.wants_a_runner:
            return f"wait until {job.id} has finished"
        if not job.state.ended:
            return (
                f"{job.id} is {job.state.value}: resume it (baton jobs resume {job.id}) and wait until it has finished"
            )
    return ""


class GapWatch:
    """The gap, for gates and people. `loop` is the caller's to run."""

    def __init__(self, control: GapRecords) -> None:
        self._control = control
        self._is_known = False
        self.text = ""
        """As `gap`, of the last look."""
        self.loop = Loop("log gap", self._body, longest_pause_seconds=2.0)

    async def look(self) -> None:
        """Raises as `gap` does; the last text then stays."""
        self.text = await gap(self._control)
        self._is_known = True

    def evidence(self, evidence: Evidence) -> Evidence:
        """With the gap. Before the first look the lag is not known."""
        if not self._is_known:
            return replace(evidence, lag_seconds=None)
        if not self.text or evidence.under_way is None:
            return replace(evidence, log_gap=self.text)
        return replace(evidence, log_gap=self.text, under_way=(*evidence.under_way, self.text))

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

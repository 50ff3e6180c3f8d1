"""The log gap that `baton events restart` leaves: events of the former log that a store has never read.

Until a reconcile job has copied their records, only the owner's store has these writes, even those with `ack: logged`.
A seizure would lose them silently. So the control store records the start of the gap, as the number of a job. The gap
is open until a reconcile job with a higher number, added after both feeds were restarted, has finished and left no
difference. A job that failed, was cancelled, or only compares does not close it.

The two marks are separate values and are never removed, so a late write by one router cannot remove a later gap.
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
"""Names of the two marks; each value is the number of a job. The second mark is stored because old jobs are deleted."""
INTERVAL_SECONDS = 1.0


class GapRecords(JobRecords, RememberedValues, Protocol):
    """Part of the control store."""


class GapStands(BatonError):
    """Writes from before `baton events restart` may be at one store only; nothing was changed. Run baton reconcile."""

    code = "FAILED_PRECONDITION"
    reason = "LOG_GAP"


async def open_gap(control: GapRecords) -> int:
    """Open the gap. Returns a job number; the job that closes the gap has a higher one. Raises ControlUnavailable."""
    newest = max((number_of_job(job.id) for job in await control.jobs()), default=0)
    await control.remember(OPENED, str(newest))
    return newest


async def gap(control: GapRecords) -> str:
    """The reason why a seizure may lose acknowledged writes, and the job to wait for; "" if no gap is open.

    Raises ControlUnavailable, JobNotFound."""
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
        left = left or f"{job.id} left {findings.left} differences (baton jobs show {job.id}): resolve them, then "
    why = "writes that were published before the feeds were restarted may be at one store only"
    return f"{why}: {_remedy(later) or f'{left}run baton reconcile and wait for its end'}"


async def _number(control: GapRecords, mark: str) -> int | None:
    found = await control.remembered(mark)
    return None if found is None else int(found)


def _copies(job: Job) -> bool:
    return job.kind == NAME and job.arguments.get("repair", "yes") == "yes"


def _remedy(later: Sequence[Job]) -> str:
    """The job to wait for or to resume; "" if all have ended. At most one of the jobs has not ended."""
    for job in later:
        if job.state.wants_a_runner:
            return f"wait until {job.id} has finished"
        if not job.state.ended:
            return (
                f"{job.id} is {job.state.value}: resume it (baton jobs resume {job.id}) and wait until it has finished"
            )
    return ""


class GapWatch:
    """The log gap, for gates and operators. The caller runs `loop`."""

    def __init__(self, control: GapRecords) -> None:
        self._control = control
        self._is_known = False
        self.text = ""
        """Result of `gap` at the last look."""
        self.loop = Loop("log gap", self._body, longest_pause_seconds=2.0)

    async def look(self) -> None:
        """Read the gap. Raises the errors of `gap`, and then keeps the former text."""
        self.text = await gap(self._control)
        self._is_known = True

    def evidence(self, evidence: Evidence) -> Evidence:
        """The evidence with the gap. Before the first look, the lag counts as unknown."""
        if not self._is_known:
            return replace(evidence, lag_seconds=None)
        if not self.text or evidence.under_way is None:
            return replace(evidence, log_gap=self.text)
        return replace(evidence, log_gap=self.text, under_way=(*evidence.under_way, self.text))

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

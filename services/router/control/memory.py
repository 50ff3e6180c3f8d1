"""The control store in the memory of one process. It is complete, but ends with the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from libs.clock import Clock, SystemClock
from services.router.control.codec import job_id
from services.router.control.info import ControlInfo
from services.router.control.leases import Lease, LeaseObservations
from services.router.control.port import (
    AUTOMATIC,
    KEPT_JOBS,
    KEPT_REPORTS,
    ControlUnavailable,
    JobNotFound,
    JournalEntry,
    LastRollback,
    Report,
)
from services.router.core.jobs import Job, JobUnderWay
from services.router.core.phase import Setting


class MemoryControlState:
    """Data that several `MemoryControlStore`s share, as routers share a database."""

    def __init__(self) -> None:
        self.id = uuid4().hex
        self.setting: Setting | None = None
        self.journal: list[JournalEntry] = []
        self.leases: dict[str, Lease] = {}
        self.values: dict[str, str] = {}
        self.durable: dict[int, Job] = {}
        self.reports: dict[str, tuple[int, Report]] = {}
        """Sequence number and report of each router, by name."""
        self.rollback: LastRollback | None = None


class MemoryControlStore:
    """A `ControlStore` in memory. While `reachable` is False every call raises ControlUnavailable."""

    def __init__(self, shared: MemoryControlState | None = None, *, clock: Clock | None = None) -> None:
        self.reachable = True
        self._shared = shared or MemoryControlState()
        self._clock = clock or SystemClock()
        self._sightings = LeaseObservations(self._clock)

    async def load(self) -> Setting:
        self._check()
        if self._shared.setting is None:
            first = JournalEntry(self._clock.now(), "baton", "start", "", Setting(), Setting(generation=1))
            self._shared.setting = first.after
            self._shared.journal.append(first)
        return self._shared.setting

    async def change(self, entry: JournalEntry) -> bool:
        current = await self.load()
        if current.generation != entry.before.generation:
            return False
        self._shared.setting = entry.after
        self._shared.journal.append(entry)
        if entry.action == AUTOMATIC:
            self._shared.rollback = LastRollback(entry, 0.0)
        return True

    async def last_rollback(self) -> LastRollback | None:
        self._check()
        return self._shared.rollback

    async def watched(self, generation: int, seconds: float) -> None:
        self._check()
        last = self._shared.rollback
        if last is not None and last.entry.after.generation == generation:
            self._shared.rollback = replace(last, watched_seconds=last.watched_seconds + seconds)

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        self._check()
        return self._shared.journal[::-1][:limit]

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        self._check()
        lease = self._shared.leases.get(name)
        if ttl_seconds <= 0:
            if lease is not None and lease.holder == holder:
                del self._shared.leases[name]
            return False
        if not self._sightings.may_take(name, lease, holder):
            return False
        self._shared.leases[name] = Lease(holder, lease.renewals + 1 if lease else 1, ttl_seconds)
        return True

    async def remember(self, name: str, value: str) -> None:
        self._check()
        self._shared.values[name] = value

    async def remembered(self, name: str) -> str | None:
        self._check()
        return self._shared.values.get(name)

    async def report(self, report: Report) -> None:
        self._check()
        reports = self._shared.reports
        sequence = max((sequence for sequence, _ in reports.values()), default=0) + 1
        kept = {name: entry for name, entry in reports.items() if entry[0] >= sequence - KEPT_REPORTS}
        self._shared.reports = {**kept, report.router: (sequence, report)}

    async def reports(self) -> Sequence[Report]:
        self._check()
        return [self._shared.reports[name][1] for name in sorted(self._shared.reports)]

    async def add(self, job: Job) -> Job:
        self._check()
        kept = self._shared.durable
        for other in kept.values():
            if other.lane == job.lane and not other.state.ended:
                raise JobUnderWay(f"{other.id} is under way; nothing was changed")
        number = max(kept, default=0) + 1
        for old in sorted(key for key, other in kept.items() if other.lane == job.lane)[: 1 - KEPT_JOBS]:
            del kept[old]
        kept[number] = replace(job, id=job_id(job.kind, number), version=1)
        return kept[number]

    async def put(self, job: Job) -> Job | None:
        self._check()
        for number, other in self._shared.durable.items():
            if (other.id, other.version) == (job.id, job.version):
                self._shared.durable[number] = replace(job, version=job.version + 1)
                return self._shared.durable[number]
        return None

    async def job(self, job_id: str) -> Job:
        self._check()
        for job in self._shared.durable.values():
            if job.id == job_id:
                return job
        raise JobNotFound(f"there is no job {job_id!r}: baton jobs lists all jobs")

    async def jobs(self) -> Sequence[Job]:
        self._check()
        newest = sorted(self._shared.durable.items(), reverse=True)
        return [replace(job, checkpoint=b"", report="") for _, job in newest]

    async def info(self) -> ControlInfo:
        self._check()
        return ControlInfo("memory", "this process", id=self._shared.id)

    def _check(self) -> None:
        if not self.reachable:
            raise ControlUnavailable

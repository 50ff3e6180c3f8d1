"""The port of the control store, which all routers of a migration share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.errors import BatonError
from services.router.core.gates import GateResult
from services.router.core.jobs import Job
from services.router.core.phase import Setting


class ControlUnavailable(BatonError):
    """The control store is unavailable; routers continue with the last setting that they read."""

    code = "UNAVAILABLE"
    reason = "CONTROL_UNAVAILABLE"
    retry_seconds = 1.0


class DamagedSetting(ControlUnavailable):
    """The setting in the control store cannot be read. Only a rollback can replace it."""

    reason = "SETTING_DAMAGED"

    def __init__(self, generation: int, detail: str) -> None:
        super().__init__(detail=detail)
        self.generation = generation
        """Generation of the row, on which the change that replaces it is conditional."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One change of the setting. Appended in the transaction of the change, and never altered."""

    time_seconds: float
    """UNIX time."""
    actor: str
    action: str
    """start, advance, rollback, canary, hold lifted, flag."""
    reason: str
    before: Setting
    after: Setting
    gates: tuple[GateResult, ...] = ()
    overridden: bool = False


AUTOMATIC = "automatic rollback"
"""Action in the journal of a rollback by the program."""


@dataclass(frozen=True, slots=True)
class LastRollback:
    """The newest automatic rollback. Stored outside the journal, so that it is found however long the journal is."""

    entry: JournalEntry
    watched_seconds: float
    """Time for which routers have watched B since, by monotonic clocks."""


class Rollbacks(Protocol):
    """The newest automatic rollback. If the store is unavailable, each method raises ControlUnavailable within two
    seconds."""

    async def last_rollback(self) -> LastRollback | None: ...

    async def watched(self, generation: int, seconds: float) -> None:
        """Add to the watched seconds, if the newest automatic rollback made this generation."""
        ...


class Leases(Protocol):
    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        """Take or renew the lease of this name. Returns False if another holder has it. `ttl_seconds` 0 gives it up.

        Two holders for a moment do no harm, because their work is safe to repeat."""
        ...


class RememberedValues(Protocol):
    """Small values, by name, that outlive the routers. If the store is unavailable, each method raises
    ControlUnavailable within two seconds."""

    async def remember(self, name: str, value: str) -> None:
        """Store a value under a name, and replace the former one."""
        ...

    async def remembered(self, name: str) -> str | None:
        """The value of a name; None if there is none."""
        ...


class ControlStore(Leases, Protocol):
    """The setting and its journal. If the store is unavailable, each method raises ControlUnavailable within two
    seconds."""

    async def load(self) -> Setting:
        """The current setting. The first call ever makes generation 1 with phase OFF and journals "start".

        Raises DamagedSetting if the stored setting cannot be read.
        """
        ...

    async def change(self, entry: JournalEntry) -> bool:
        """Replace `entry.before` by `entry.after` and append the entry, in one transaction. Returns False and changes
        nothing if the current generation is not `entry.before.generation`."""
        ...

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        """The newest entries, newest first."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """One router's measurements. Each router adds up the reports of all."""

    router: str
    number: int
    """Changes with each report. If it stays the same, the router has stopped."""
    text: str
    """JSON."""


KEPT_REPORTS = 36_000
"""Number of later reports, of all routers, after which a router's report is deleted. Ten routers make this many in an
hour. The limit is a number and not a time, because a router's clock may be wrong."""


class Reports(Protocol):
    """The routers' reports. If the store is unavailable, each method raises ControlUnavailable within two seconds."""

    async def report(self, report: Report) -> None:
        """Replace this router's former report, and delete reports of routers that stopped long ago."""
        ...

    async def reports(self) -> Sequence[Report]:
        """The latest report of each router, by name."""
        ...


KEPT_JOBS = 20
"""Number of jobs that a lane keeps. Older ones that have ended are deleted when a job is added."""


class JobNotFound(BatonError):
    """There is no such job."""

    code = "NOT_FOUND"
    reason = "JOB_NOT_FOUND"


class JobRecords(Protocol):
    """The jobs of all routers. If the store is unavailable, each method raises ControlUnavailable within two
    seconds."""

    async def add(self, job: Job) -> Job:
        """Store a new job. Returns it with its id and version 1. Raises JobUnderWay if a job of the same lane has not
        ended. Of two concurrent calls, one succeeds."""
        ...

    async def put(self, job: Job) -> Job | None:
        """Store a changed job if the stored one still has the same version. Returns it with the next version, or None
        if it was changed concurrently."""
        ...

    async def job(self, job_id: str) -> Job:
        """The job with this id. Raises JobNotFound."""
        ...

    async def jobs(self) -> Sequence[Job]:
        """All stored jobs, newest first, without checkpoint and report."""
        ...

"""The control store: what all routers of one migration share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.errors import BatonError
from services.router.core.gates import GateResult
from services.router.core.jobs import Job
from services.router.core.phase import Setting


class ControlUnavailable(BatonError):
    """The control store is out of reach; routers go on with the last setting that they read."""

    code = "UNAVAILABLE"
    reason = "CONTROL_UNAVAILABLE"
    retry_seconds = 1.0


class DamagedSetting(ControlUnavailable):
    """The setting in the control store cannot be read. A rollback writes over it; nothing else changes it."""

    reason = "SETTING_DAMAGED"

    def __init__(self, generation: int, detail: str) -> None:
        super().__init__(detail=detail)
        self.generation = generation
        """Of the row: the condition of the change that writes over it."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One change of the setting. Appended with the change, never altered."""

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
"""The journal's action of a rollback that no person has made."""


@dataclass(frozen=True, slots=True)
class LastRollback:
    """The newest automatic rollback. Kept apart from the journal, however long that is."""

    entry: JournalEntry
    watched_seconds: float
    """For how long a router has watched since, by its monotonic clock: no wall clock tells this."""


class Rollbacks(Protocol):
    """Every method raises ControlUnavailable within two seconds when the store is away."""

    async def last_rollback(self) -> LastRollback | None: ...

    async def watched(self, generation: int, seconds: float) -> None:
        """Adds to the watched seconds, if the newest automatic rollback still made that generation."""
        ...


class Leases(Protocol):
    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool:
        """Takes or renews the named role; False when another holder has it. Two holders for a moment do no harm: what
        they do is safe twice. `ttl_seconds` 0 gives it up."""
        ...


class RememberedValues(Protocol):
    """Small values that outlive the routers, by name. Every method raises ControlUnavailable within two seconds when
    the store is away."""

    async def remember(self, name: str, value: str) -> None:
        """Puts the value in place of the former one of that name."""
        ...

    async def remembered(self, name: str) -> str | None:
        """None: there was never one."""
        ...


class ControlStore(Leases, Protocol):
    """Every method raises ControlUnavailable within two seconds when the store is away."""

    async def load(self) -> Setting:
        """The current setting; the first ever call makes generation 1 with phase OFF and journals "start".

        Raises DamagedSetting if what is there cannot be read.
        """
        ...

    async def change(self, entry: JournalEntry) -> bool:
        """Puts `entry.after` in place of `entry.before` and appends the entry, both or nothing. False, and nothing
        changed, when the current generation is not `entry.before.generation`."""
        ...

    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        """Newest first."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What one router has measured, for all of them to sum up."""

    router: str
    number: int
    """Another one with each report: a report whose number stands still says that its router does."""
    text: str
    """JSON."""


REPORT_KEPT_TURNS = 36_000
"""How many later reports, of all routers, the report of a router that is gone is kept for: ten routers make so many in
an hour. Counted in turns, since a router's clock may be wrong."""


class Reports(Protocol):
    """Every method raises ControlUnavailable within two seconds when the store is away."""

    async def report(self, report: Report) -> None:
        """Puts this router's report in place of its former one, and forgets those of routers that are long gone."""
        ...

    async def reports(self) -> Sequence[Report]:
        """The latest one of each router, by name."""
        ...


KEPT_JOBS = 20
"""How many jobs of a lane are kept; older ones that have ended are forgotten when another one is added."""


class JobNotFound(BatonError):
    """There is no such job."""

    code = "NOT_FOUND"
    reason = "JOB_NOT_FOUND"


class JobRecords(Protocol):
    """The jobs of all routers. Every method raises ControlUnavailable within two seconds when the store is away."""

    async def add(self, job: Job) -> Job:
        """Writes a new job down and returns it with its id and version 1. Raises JobUnderWay when one of the same lane
        has not ended: of two who add at once, one succeeds."""
        ...

    async def put(self, job: Job) -> Job | None:
        """Puts it in place of what was written under its id, if that is still of the same version; returns it with the
        next version. None, and nothing changed: somebody else changed it meanwhile."""
        ...

    async def job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        ...

    async def jobs(self) -> Sequence[Job]:
        """All that are kept, the newest first, without checkpoint and report."""
        ...

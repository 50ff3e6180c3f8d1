"""The chronicle: facts about a migration that outlive routers, stores and jobs, kept in the control store.

One router, the holder of a lease, adds to it every few seconds. All read it. Two holders for a moment write the same
facts. If the last router ends, counts of the last seconds are missing; facts of the journal never are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from libs.clock import Age, Clock
from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.control.port import ControlStore, RememberedValues, Reports
from services.router.core.evidence import Evidence
from services.router.core.jobs import Job
from services.router.core.ledger_totals import LedgerTotals
from services.router.core.write_ledger import LedgerCounts
from services.router.flows.jobs.reconcile_job import DEEP
from services.router.flows.steering.history import History, utc
from services.router.flows.steering.report import Measured, OldClient
from services.router.flows.stores import StoreViews

INTERVAL_SECONDS = 1.0
WRITE_LOOKS = 5
"""Looks from one addition to the next."""
LEASE_NAME = "chronicle"
LEASE_SECONDS = 15.0
HISTORY, COUNTED, BACKUP = "history", "counted", "cold backup"
"""Names of remembered values."""
MOST_CLIENTS = MOST_JOBS = 100
KEPT_KINDS = ("audit", "backfill", "rehearsal", "recover", "seize")
"""Kinds of jobs whose results the certificate names."""


class Control(ControlStore, RememberedValues, Reports, Protocol):
    """The parts of the control store that the chronicle needs."""


class JobView(Protocol):
    @property
    def view(self) -> Iterable[Job]: ...


@dataclass(frozen=True, slots=True)
class Counted:
    """Facts that the journal does not have."""

    ledger: LedgerTotals = field(default_factory=LedgerTotals)
    clients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Clients of A, and of an old schema version, by listener and name: their last call."""
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Jobs that have ended, by id."""

    def to_json(self) -> str:
        running = {name: list(counts) for name, counts in self.ledger.running.items()}
        ledger = {"ended": list(self.ledger.ended), "running": running}
        return json.dumps({"ledger": ledger, "clients": self.clients, "jobs": self.jobs}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Counted:
        """Raises ValueError if another release wrote it."""
        try:
            found = json.loads(text)
            running = {name: LedgerCounts(*counts) for name, counts in found["ledger"]["running"].items()}
            ledger = LedgerTotals(LedgerCounts(*found["ledger"]["ended"]), running)
            return cls(ledger, found["clients"], found["jobs"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"counts of another release: {error!r}") from None

    def with_clients(self, seen: Iterable[tuple[str, OldClient]], now: float) -> Counted:
        """`seen`: where a client called, and the client."""
        found = dict(self.clients)
        for where, client in seen:
            last = utc(now - client.idle_seconds)
            known = found.get(f"{where} {client.name}", {})
            if last > known.get("last_call", ""):
                shown = {"at": where, "name": client.name, "last_call": last}
                found[f"{where} {client.name}"] = {**shown, "schema_version": client.schema_version}
        newest = sorted(found.items(), key=lambda item: str(item[1]["last_call"]))[-MOST_CLIENTS:]
        return replace(self, clients=dict(newest))

    def with_jobs(self, jobs: Iterable[Job]) -> Counted:
        ended = {job.id: _job(job) for job in jobs if job.state.ended and job.kind in KEPT_KINDS}
        newest = sorted({**self.jobs, **ended}.items(), key=lambda item: str(item[1]["ended"]))[-MOST_JOBS:]
        return replace(self, jobs=dict(newest))


@dataclass(frozen=True, slots=True)
class Known:
    """All that the chronicle holds."""

    history: History
    counted: Counted | None
    """None: they cannot be read, because a router of another release wrote them."""
    deep: Mapping[str, Any] | None
    """The last deep comparison."""
    backup: Mapping[str, Any] | None
    """The last verified backup of A."""


class Chronicle:
    """The caller runs `loop`."""

    def __init__(
        self,
        control: Control,
        jobs: JobView,
        views: StoreViews,
        at_routers: Callable[[], Iterable[OldClient]],
        clock: Clock,
        holder: str,
    ) -> None:
        """`at_routers`: clients of an old schema version at live routers. `holder`: this router's name."""
        self._control = control
        self._at_routers = at_routers
        self._jobs = jobs
        self._views = views
        self._clock = clock
        self._holder = holder
        self._looks = 0
        self._deep: Mapping[str, Any] | None = None
        self._backup: Mapping[str, Any] | None = None
        self._deep_age, self._backup_age = Age(clock), Age(clock)
        self.loop = Loop("chronicle", self._body)

    def evidence(self, evidence: Evidence) -> Evidence:
        """Add the last deep comparison and the last backup."""
        deep, backup = self._deep, self._backup
        return replace(
            evidence,
            deep_seconds_ago=None if deep is None else self._deep_age.seconds(deep["ended_seconds"]),
            deep_left=None if deep is None else deep["left"],
            backup_seconds_ago=None if backup is None else self._backup_age.seconds(backup["ended_seconds"]),
        )

    async def look(self) -> None:
        """Read the last results, and add to the chronicle if it is time. Raises ControlUnavailable."""
        await self._read_results()
        self._looks += 1
        if self._looks % WRITE_LOOKS == 1 and await self._control.lease(LEASE_NAME, self._holder, LEASE_SECONDS):
            await self.add()

    async def add(self) -> None:
        """Add new entries. Counts of another release stay as they are. Raises ControlUnavailable."""
        known = await self.read()
        await self._control.remember(HISTORY, known.history.to_json())
        if known.counted is not None:
            await self._control.remember(COUNTED, known.counted.to_json())

    async def read(self) -> Known:
        """The chronicle with the newest facts. Raises ControlUnavailable."""
        history, counted = await self._history(), await self._counted()
        await self._read_results()
        return Known(history, counted, self._deep, self._backup)

    async def _read_results(self) -> None:
        self._deep = await self.remembered(DEEP)
        self._backup = await self.remembered(BACKUP)

    async def _history(self) -> History:
        history = History.from_json(await self._control.remembered(HISTORY) or "")
        # A setting that was restored from a backup has an older generation than the history: it is folded anew.
        current = (await self._control.load()).generation
        history = history if history.generation <= current else History()
        while missing := current - history.generation:
            entries = await self._control.journal(missing)
            newest = entries[0].after.generation if entries else current
            if newest <= current:
                return history.plus(reversed(entries))
            # Changes since then have pushed the oldest of the missing entries out.
            current = newest
        return history

    async def _counted(self) -> Counted | None:
        text = await self._control.remembered(COUNTED)
        try:
            counted = Counted() if text is None else Counted.from_json(text)
        except ValueError:
            return None
        known, seen = counted.ledger.running, {}
        for report in await self._control.reports():
            measured = _measured(report.text)
            # A router of another release goes on with the counts that are known.
            ledger = known.get(report.router) if measured is None else measured.ledger
            if ledger is not None:
                seen[report.router] = ledger
        counted = replace(counted, ledger=counted.ledger.seen(seen))
        return counted.with_clients(self._clients(), self._clock.now()).with_jobs(self._jobs.view)

    def _clients(self) -> Iterable[tuple[str, OldClient]]:
        """Clients that must change before A or an old schema version can end, and where they called."""
        status = self._views.view(Store.A).fresh(self._clock.monotonic())
        for client in status.clients if status is not None else ():
            yield "store A", OldClient(client.name, client.schema_version, client.calls, client.idle_seconds)
        for seen in self._at_routers():
            yield "router", seen

    async def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Store a value as JSON. Raises ControlUnavailable."""
        await self._control.remember(name, json.dumps(value))

    async def remembered(self, name: str) -> Mapping[str, Any] | None:
        text = await self._control.remembered(name)
        found: Mapping[str, Any] | None = None if text is None else json.loads(text)
        return found

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)


def _measured(text: str) -> Measured | None:
    try:
        return Measured.from_json(text)
    except ValueError:
        # A router of another release wrote it.
        return None


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state.value,
        "ended": utc(job.ended_seconds),
        "actor": job.actor,
        "note": job.note,
    }

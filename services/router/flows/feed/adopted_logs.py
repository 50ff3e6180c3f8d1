"""Journal entries for logs that a store adopted without a check of their identity.

A store that an earlier release has filled has offsets, but no mark of the log that it has read. It adopts the present
log, and cannot check that this is the same one. The journal must show when this happened and by which event. The store
reports it while its process runs; one router writes the entry, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.control.port import JournalEntry
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.stores import StoreViews

INTERVAL_SECONDS = 1.0
ADOPTED = "log identity adopted"
"""The action in the journal."""
_ROLE = "adopted-logs"
_ROLE_SECONDS = 10.0
_ENTRIES = 1000
"""Journal entries to search for an earlier report of the same adoption."""


class Journal(Protocol):
    """Raises ControlUnavailable."""

    async def journal(self, limit: int) -> Sequence[JournalEntry]: ...

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> bool: ...


class AdoptedLogs:
    """The reporter of adopted logs. The caller runs `loop`."""

    def __init__(self, views: StoreViews, migration: Migration, journal: Journal, holder: str) -> None:
        self._views = views
        self._migration = migration
        self._journal = journal
        self._holder = holder
        self._noted: set[str] = set()
        self.loop = Loop("adopted logs", self._body, longest_pause_seconds=5.0)

    async def look(self) -> None:
        """Raises ControlUnavailable, Outdated."""
        reports = {store: report for store in Store if (report := self._report(store)) and report not in self._noted}
        # The lease keeps two routers from writing the same entry.
        if not reports or not await self._journal.lease(_ROLE, self._holder, _ROLE_SECONDS):
            return
        known = {entry.reason for entry in await self._journal.journal(_ENTRIES) if entry.action == ADOPTED}
        for store, report in reports.items():
            if report not in known:
                await self._migration.note(Decision(f"store {store}", report), ADOPTED)
            self._noted.add(report)

    def _report(self, store: Store) -> str:
        status = self._views.view(store).status
        adopted = status.feed.log_adopted if status is not None else ""
        return f"store {store}: {adopted}" if adopted else ""

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

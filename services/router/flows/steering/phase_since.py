"""The last change of phase, read from the journal whenever the setting changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from libs.tasks import Loop
from services.router.control.port import JournalEntry
from services.router.core.phase import Setting

INTERVAL_SECONDS = 0.5
PAGES = (20, 1000)
"""Numbers of journal entries to read in turn: the last change of phase is usually among the latest."""


class Journal(Protocol):
    async def journal(self, limit: int) -> Sequence[JournalEntry]:
        """Newest first. Raises ControlUnavailable."""
        ...


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...


class PhaseSince:
    """The reader of the last change of phase. The caller runs `loop`."""

    def __init__(self, journal: Journal, steering: Steering) -> None:
        self._journal = journal
        self._steering = steering
        self._generation = 0
        self.entry: JournalEntry | None = None
        """The change that entered the phase; None if unknown."""
        self.loop = Loop("phase since", self._body)

    async def look(self) -> None:
        """Read the journal. If it raises ControlUnavailable, the last result stays."""
        setting = self._steering.current
        if setting.generation == self._generation:
            return
        found = None
        for limit in PAGES:
            entries = await self._journal.journal(limit)
            found = next((entry for entry in entries if _enters(entry)), None)
            if found is not None or len(entries) < limit:
                break
        self.entry = found if found is not None and found.after.phase is setting.phase else None
        self._generation = setting.generation

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)


def _enters(entry: JournalEntry) -> bool:
    return entry.before.phase is not entry.after.phase or entry.action == "start"

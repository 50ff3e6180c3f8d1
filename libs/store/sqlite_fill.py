"""Completion of the old program's rows while the store serves, in small transactions between the calls of clients.

A kill at any moment loses nothing: completed rows are in the database, and the next start continues with the rest.
Memory does not grow with the number of rows.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from libs.sqlite import Database
from libs.store.inspection import ExportQuery
from libs.store.sqlite_old import STEP_ROWS, OldRows, Progress, StillFilling
from libs.tasks import Loop

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_SHARE = 0.5
"""After a step the fill pauses for this share of the step's time, so that calls get the processor."""
LOG_SECONDS = 10.0
FIRST_SECONDS = 0.5
"""How long a start waits for the first steps before the store serves."""
SMALL_ROWS = 1000
SMALL_SECONDS = 30.0
"""A file of up to SMALL_ROWS rows is completed before the store serves. A start waits at most SMALL_SECONDS for
this."""
NAMES_SECONDS = 20.0
"""How long a list waits at most until all ids have been examined."""


class Fill:
    """The completion of one store's old rows, while `running`."""

    def __init__(self, database: Database, rows: OldRows, *, filling: bool = True) -> None:
        """`filling`: if False, a row with a clean id is completed only when a call needs it."""
        self.rows = rows
        self._filling = filling
        self.over = False
        self.progress = Progress(0, 0, counted=False)
        self.loop = Loop("old rows", self._step)
        self._database = database
        self._looked_to: bytes | None = None
        """Up to this id all odd rows are completed."""
        self._names_known = asyncio.Event()
        self._prepared = asyncio.Event()
        """Set when odd rows are completed and the others are counted."""
        self._ended = asyncio.Event()
        self._logged_at, self._logged_done = time.monotonic(), 0

    def __repr__(self) -> str:
        return f"<Fill {self}>"

    def __str__(self) -> str:
        return str(self.progress)

    async def ended(self) -> None:
        """Wait until every row is completed."""
        await self._ended.wait()

    def check(self, action: str) -> None:
        """Raise StillFilling if rows are not completed: `action` needs every row."""
        if not self.over:
            raise StillFilling(
                f"{action} needs all rows of the old program: {self}; the completion continues by itself, try again"
                " later"
            )

    async def wait_for_names(self) -> None:
        """Wait until the id of each remaining row is part of its key. Raises StillFilling."""
        try:
            async with asyncio.timeout(NAMES_SECONDS):
                await self._names_known.wait()
        except TimeoutError:
            self.check("a list")

    async def prepare(self, query: ExportQuery) -> str:
        """Complete the rows that a copy of records would show first. Return the last key up to which the records are
        complete; "" if all records of the query are. Raises StillFilling."""
        if query.buckets:
            self.check("a copy by buckets")
        if query.pattern or query.account:
            self.check("a list of a cohort's records")
        if query.keys:
            await self._write(partial(self.rows.complete, keys=query.keys))
            return ""
        await self.wait_for_names()
        last, left = query.after, query.limit
        while left > 0:
            last = await self._write(partial(self.rows.complete_after, after=last, limit=min(left, STEP_ROWS)))
            left -= STEP_ROWS
            if not last:
                return ""
        return last

    @asynccontextmanager
    async def running(self, *, is_small: bool) -> AsyncIterator[None]:
        """Complete rows while the block runs. A small file is complete when the block begins. A file of usual size can
        answer lists by then, unless the machine is too busy."""
        task = asyncio.create_task(self.loop.run())
        try:
            seconds = SMALL_SECONDS if is_small else FIRST_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._prepared.wait()
                    if self._filling:
                        await self._ended.wait()
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _step(self, loop: Loop) -> None:
        if self.over or (self._prepared.is_set() and not self._filling):
            # The loop has no more steps. Its owner ends it.
            await asyncio.Event().wait()
        began, prepared = time.monotonic(), self._prepared.is_set()
        await self._take_step()
        loop.well()
        # The first steps make no pause, because lists wait for them.
        await asyncio.sleep((time.monotonic() - began) * PAUSE_SHARE if prepared else 0)

    async def _take_step(self) -> None:
        await (self._complete_step() if self._prepared.is_set() else self._prepare_step())

    async def _prepare_step(self) -> None:
        if self._names_known.is_set():
            total = await self._database.read(self.rows.count)
            self.progress = await self._write(partial(self.rows.keep_total, total=total))
            self._prepared.set()
            return
        end, odd = await self._database.read(partial(self.rows.find_odd, after=self._looked_to))
        for start in range(0, len(odd), STEP_ROWS):
            await self._write(partial(self.rows.complete_numbers, numbers=odd[start : start + STEP_ROWS]))
        if end is None and self._looked_to is not None:
            self._names_known.set()
        self._looked_to = end

    async def _complete_step(self) -> None:
        completed = await self._write(partial(self.rows.complete_some, limit=STEP_ROWS))
        self.progress = await self._database.read(self.rows.progress)
        if completed:
            self._log_progress()
            return
        if self.progress.left:
            # Triggers refuse to delete old rows, so another program has dropped the triggers.
            reason = f"{self.progress.left} of {self.progress.total} rows of the old program are lost"
            log.error("%s: restore the file from a backup", reason)
            await self._write(partial(self.rows.fence, reason=reason))
        self.over = True
        self._ended.set()
        log.info("old rows: all %d are completed", self.progress.done)

    def _log_progress(self) -> None:
        now, done = time.monotonic(), self.progress.done
        if now - self._logged_at >= LOG_SECONDS:
            rate = (done - self._logged_done) / (now - self._logged_at)
            left = f", about {self.progress.left / rate / 60:.0f} min left" if rate else ""
            log.info("old rows: %s%s", self, left)
            self._logged_at, self._logged_done = now, done

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.write(work, background=True)

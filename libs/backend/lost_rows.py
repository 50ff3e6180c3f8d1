"""Whether a store has lost rows: removed by hand, by a restored table, or by a disk.

Lost rows are no absence of a record. A store that serves without them answers NOT_FOUND, creates the names anew, and
takes an older version of them for its own. So it is fenced, and `baton recover` brings it back from the other store.

A count of all rows takes as long as there are rows, and a start must not. So a start counts bucket by bucket for a
moment, and the rest is counted while the store serves: rows that are missing then fence it as they would have before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from libs.ownership.model import BUCKETS
from libs.store.port import Inspection, Missing, StorePorts
from libs.tasks import Loop

log = logging.getLogger(__name__)

START_SECONDS = 0.5
"""For which a start counts rows, and a slice of the count afterwards."""
PAUSE_SECONDS = 0.5
"""Between two slices, for the calls."""
IDLE_SECONDS = 5.0
_QUICK_SECONDS, _SLOW_SECONDS = 0.05, 0.2
"""A step that was quicker is followed by one of twice as many buckets; a slower one by one of half as many."""


async def lost_rows(inspection: Inspection) -> str:
    """Why the store must be fenced, or ""."""
    return describe(await inspection.missing())


def describe(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    lost = sum(one.counted - one.found for one in missing)
    first = missing[0]
    return (
        f"rows are missing: {lost}, in {len(missing)} buckets; bucket {first.bucket} has had {first.counted} and has"
        f" {first.found}"
    )


class RowCount:
    """One count of all buckets, in slices. It stays at a bucket that lacks rows, so that a second look sees it too."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._next = 0
        self._step = 1

    @property
    def is_complete(self) -> bool:
        return self._next == BUCKETS

    def __str__(self) -> str:
        return f"rows are counted in {self._next} of {BUCKETS} buckets"

    async def at_start(self) -> str:
        """As `slice`, but a bucket that takes longer than a start may is left for later."""
        try:
            async with asyncio.timeout(2 * START_SECONDS + _SLOW_SECONDS):
                return await self.slice()
        except TimeoutError:
            return ""

    async def slice(self) -> str:
        """Count for START_SECONDS, at least one bucket. Returns why the store must be fenced, or "". Raises what the
        store raises."""
        clock = asyncio.get_running_loop().time
        end = clock() + START_SECONDS
        while not self.is_complete:
            buckets = range(self._next, min(self._next + self._step, BUCKETS))
            began = clock()
            if reason := describe(await self._inspection.missing(buckets)):
                return reason
            self._next = buckets.stop
            took = clock() - began
            if clock() >= end:
                break
            if took < _QUICK_SECONDS:
                self._step *= 2
            elif took > _SLOW_SECONDS:
                self._step = max(self._step // 2, 1)
        return ""


class RowCountLoop:
    """Goes on with the count of a start while the store serves. `loop` is the caller's to run."""

    def __init__(self, ports: StorePorts, count: RowCount) -> None:
        self.loop = Loop("row count", self._body)
        self._ports = ports
        self._count = count

    async def _body(self, loop: Loop) -> None:
        if self._count.is_complete or (await self._ports.recovery.standing()).gone:
            loop.well()
            await asyncio.sleep(IDLE_SECONDS)
            return
        # Twice: the first look may have been at a moment that another process of the store has passed by now.
        if await self._count.slice() and (reason := await self._count.slice()):
            log.error("this store has lost rows and is fenced: %s", reason)
            await self._ports.recovery.fence(reason)
        loop.well()
        await asyncio.sleep(PAUSE_SECONDS)

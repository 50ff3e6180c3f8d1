"""Detection of lost rows: removed by hand, by a restored table, or by a disk.

A lost row does not mean that its record never existed. A store that serves without it answers NOT_FOUND, creates the
name again, and accepts an older version of the record. So the store is fenced, and `baton recover` restores it from the
other store.

A count of all rows takes as long as there are rows, which a start must not. So a start counts bucket by bucket for a
moment, and the rest is counted while the store serves. Missing rows found then fence it just the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from libs.ownership.model import BUCKETS
from libs.store.inspection import Inspection, Missing
from libs.store.port import StorePorts
from libs.tasks import Loop

log = logging.getLogger(__name__)

START_SECONDS = 0.5
"""Time limit of a start's count, and of each later slice."""
PAUSE_SECONDS = 0.5
"""Pause between two slices, for the calls."""
IDLE_SECONDS = 5.0
_QUICK_SECONDS, _SLOW_SECONDS = 0.05, 0.2
"""Step sizes adapt: a faster step doubles the next number of buckets, a slower one halves it."""


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
    """One count of all buckets, in slices. It stays at a bucket that lacks rows, so that a second check sees it too."""

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
        """Like `slice`, but skip a bucket that takes too long for a start."""
        try:
            async with asyncio.timeout(2 * START_SECONDS + _SLOW_SECONDS):
                return await self.slice()
        except TimeoutError:
            return ""

    async def slice(self) -> str:
        """Count for START_SECONDS, at least one bucket. Returns why the store must be fenced, or "". Raises the store's
        errors."""
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
    """Continues a start's count while the store serves. The caller runs `loop`."""

    def __init__(self, ports: StorePorts, count: RowCount) -> None:
        self.loop = Loop("row count", self._body)
        self._ports = ports
        self._count = count

    async def _body(self, loop: Loop) -> None:
        if self._count.is_complete or (await self._ports.recovery.standing()).fence_reason:
            loop.well()
            await asyncio.sleep(IDLE_SECONDS)
            return
        # Twice: the first check may have seen a moment that another process of the store has passed by now.
        if await self._count.slice() and (reason := await self._count.slice()):
            log.error("this store has lost rows and is fenced: %s", reason)
            await self._ports.recovery.fence(reason)
        loop.well()
        await asyncio.sleep(PAUSE_SECONDS)

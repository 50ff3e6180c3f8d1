"""A watch at one store: first a complete view, then changes, in steps (see `libs.contract.watches`).

The position is taken before the view is read, so a concurrent write is shown twice rather than never. A row is read
after its key was reported, so it is never older than the write that was reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from libs.contract.operations import Watch, item_of
from libs.contract.pages import Page
from libs.contract.watches import HEARTBEAT_SECONDS, Step, WatchPosition
from libs.store.port import Listed, Since, StorePorts, UnknownPosition

PAGE_ROWS = 50
"""Maximum number of rows per read."""

STEP_BYTES = 128 * 1024
"""Maximum size of the items of one step; a single larger item is a step of its own."""

FIRST_ROWS = 8
"""Rows of the first read, while their size is unknown."""

SLOTS = 16
"""Maximum number of watches that read and send rows at a time.

A slot is held from the read until the steps are sent, so all watches together need the memory of that many pages. A
caller that takes no answer loses its watch (`SlowReader`), and with it the slot.
"""

READS = 2
"""Maximum number of concurrent reads among them: a write wakes all watches, and calls must still get their turn."""


class StoreWatches:
    """Watches over one store's ports."""

    def __init__(self, ports: StorePorts, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._ports = ports
        self._heartbeat_seconds = heartbeat_seconds
        self._slots = asyncio.Semaphore(SLOTS)
        self._reads = asyncio.Semaphore(READS)

    async def steps(self, wanted: Watch, position: WatchPosition | None, mark: str = "") -> AsyncGenerator[Step, None]:
        """Continue from the position if it is this store's and has the mark, else begin a new view. Never ends.

        Raises StoreUnavailable, Overloaded, and the errors of `wanted.item`.
        """
        fits = position is not None and (position.store, position.mark) == (self._ports.store, mark)
        shown = position if fits else None
        since = None if shown is None else await self._since(shown.at, 0)
        while True:
            if since is None:
                shown = None
                since = Since((), await self._ports.watch.now())
                async with aclosing(self._whole(wanted)) as steps:
                    async for step in steps:
                        yield step
            here = WatchPosition(self._ports.store, since.position, mark)
            async with aclosing(self._changed(wanted, since.keys, shown, here)) as steps:
                async for step in steps:
                    yield step
            shown = here
            since = await self._since(since.position, self._heartbeat_seconds)

    async def _since(self, position: str, wait_seconds: float) -> Since | None:
        """None: the position is no longer known."""
        try:
            return await self._ports.watch.since(position, wait_seconds)
        except UnknownPosition:
            return None

    async def _whole(self, wanted: Watch) -> AsyncGenerator[Step, None]:
        """All matching records, page by page. The view is complete only with the step that follows."""
        reset, after, limit = True, "", FIRST_ROWS
        while limit:
            async with self._slots:
                rows = await self._page(Page(wanted.filter, after=after, limit=limit))
                # A page that ends before it is full ends with a row that does not match.
                more = len(rows) == limit or (bool(rows) and not rows[-1].matches)
                after, limit = (rows[-1].row.key, _next_limit(rows)) if more else ("", 0)
                rows = [one for one in rows if one.matches]
                for step in _steps(wanted, rows):
                    yield replace(step, reset=reset)
                    reset = False
        if reset:
            yield Step(reset=True)

    async def _changed(
        self, wanted: Watch, written: tuple[str, ...], shown: WatchPosition | None, there: WatchPosition
    ) -> AsyncGenerator[Step, None]:
        """The written records, if any. The last step has the position `there`; earlier steps have `shown`, the safe
        one."""
        start, limit = 0, FIRST_ROWS
        while True:
            async with self._slots:
                keys = written[start : start + limit]
                rows = await self._page(Page(wanted.filter, keys=keys)) if keys else []
                start, limit = start + len(keys), _next_limit(rows)
                steps = _steps(wanted, rows)
                step = next(steps, Step())
                for following in steps:
                    yield replace(step, position=shown)
                    step = following
                if start >= len(written):
                    yield replace(step, position=there, synced=True)
                    return
                yield replace(step, position=shown)

    async def _page(self, page: Page) -> list[Listed]:
        async with self._reads:
            return await self._ports.records.page(page)


def _next_limit(rows: Sequence[Listed]) -> int:
    """Number of rows for the next read that fit a step, if they are as large as these."""
    size = sum(len(row.payload) for row, _ in rows)
    fit = PAGE_ROWS if not size else STEP_BYTES * len(rows) // size
    return max(1, min(fit, PAGE_ROWS))


def _steps(wanted: Watch, rows: list[Listed]) -> Iterator[Step]:
    """Steps of about STEP_BYTES at most. Removes the rows from the list, so that their memory is free once they are
    sent."""
    items: list[bytes] = []
    removed: list[str] = []
    size = 0
    rows.reverse()
    while rows:
        row, matches = rows.pop()
        if not matches:
            # A row without a payload was never a record, so it cannot have been removed.
            removed += [row.key] if row.payload and not wanted.hides(row) else []
            continue
        item = item_of(wanted, row)
        if item is None:
            removed.append(row.key)
            continue
        if items and size + len(item) > STEP_BYTES:
            yield Step(items, removed)
            items, removed, size = [], [], 0
        items.append(item)
        size += len(item)
    if items or removed:
        yield Step(items, removed)

"""A watch at one store: a whole view, then what is written, in steps (see `libs.contract.watches`).

The place is taken before the view is read. So what is written while it is read is shown twice rather than never; and a
row is read after its key was told, so it is never older than the write that it was told for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from libs.contract.operations import Watch
from libs.contract.watches import HEARTBEAT_SECONDS, Place, Step
from libs.rpc.limits import ANSWER_BYTES
from libs.store.few import Few
from libs.store.port import Listed, Page, Since, StorePorts, UnknownPlace

PAGE_ROWS = 50
"""Read at once."""

READS = 2
"""At once, of all watches together: a write wakes all of them, and calls must get their turn all the same."""


class Watching:
    """Watches over one store's ports."""

    def __init__(self, ports: StorePorts, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._ports = ports
        self._heartbeat_seconds = heartbeat_seconds
        self._few = Few(READS, HEARTBEAT_SECONDS, "a turn to read records")

    async def steps(self, wanted: Watch, place: Place | None) -> AsyncGenerator[Step, None]:
        """From the place, if it is one of this store, else anew. Has no end.

        Raises StoreUnavailable, Overloaded, and what `wanted.item` raises."""
        shown = place if place is not None and place.store is self._ports.store else None
        since = None if shown is None else await self._since(shown.at, 0)
        while True:
            if since is None:
                shown = None
                since = Since((), await self._ports.watch.now())
                async with aclosing(self._whole(wanted)) as steps:
                    async for step in steps:
                        yield step
            async with aclosing(self._changed(wanted, since, shown)) as steps:
                async for step in steps:
                    yield step
            shown = Place(self._ports.store, since.place)
            since = await self._since(since.place, self._heartbeat_seconds)

    async def _page(self, page: Page) -> list[Listed]:
        async with self._few.turn():
            return await self._ports.records.page(page)

    async def _since(self, place: str, wait_seconds: float) -> Since | None:
        """None: the place is lost."""
        try:
            return await self._ports.watch.since(place, wait_seconds)
        except UnknownPlace:
            return None

    async def _whole(self, wanted: Watch) -> AsyncGenerator[Step, None]:
        """Everything that matches, page by page. It is complete only with the step that comes after these."""
        page = Page(wanted.filter, limit=PAGE_ROWS)
        reset = True
        more = True
        while more:
            rows = await self._page(page)
            for step in _steps(wanted, rows):
                yield replace(step, reset=reset)
                reset = False
            more = len(rows) == page.limit
            page = replace(page, after=rows[-1].row.key if rows else "")
        if reset:
            yield Step(reset=True)

    async def _changed(self, wanted: Watch, since: Since, shown: Place | None) -> AsyncGenerator[Step, None]:
        """The records that were written, if any, and the place in the last step: before it, `shown` is what is safe."""
        last = Step()
        for start in range(0, len(since.keys), PAGE_ROWS):
            rows = await self._page(Page(wanted.filter, keys=since.keys[start : start + PAGE_ROWS]))
            for step in _steps(wanted, rows):
                if last.items or last.removed:
                    yield replace(last, place=shown)
                last = step
        yield replace(last, place=Place(self._ports.store, since.place), synced=True)


def _steps(wanted: Watch, rows: Sequence[Listed]) -> Iterator[Step]:
    """Of about ANSWER_BYTES at most."""
    items: list[bytes] = []
    removed: list[str] = []
    size = 0
    for row, matches in rows:
        if not matches:
            # A row without a payload was never a record, so there is nothing that could be gone.
            removed += [row.key] if row.payload else []
            continue
        item = wanted.item(row)
        if items and size + len(item) > ANSWER_BYTES:
            yield Step(items, removed)
            items, removed, size = [], [], 0
        items.append(item)
        size += len(item)
    if items or removed:
        yield Step(items, removed)

"""The examples of differences in the control store, which all routers share and any router shows.

They are remembered values, so their number is bounded, and a router writes each at most once in `WRITE_SECONDS`. If the
control store is out of reach, the latest ones wait.
"""

from __future__ import annotations

import asyncio

from libs.clock import Clock
from libs.errors import BatonError
from libs.tasks import Loop
from services.router.control.port import RememberedValues
from services.router.core.compare import Kind
from services.router.core.difference_evidence import KINDS, SLOTS, Example, from_json, name_of, names, to_json

WRITE_SECONDS = 5.0


class DifferenceNotFound(BatonError):
    """There is no such example of a difference. A later one may have replaced it."""

    code = "NOT_FOUND"
    reason = "DIFFERENCE_NOT_FOUND"


class DifferenceBook:
    """Raises ControlUnavailable."""

    def __init__(self, values: RememberedValues, router: str, clock: Clock) -> None:
        self.router = router
        self._values = values
        self._clock = clock
        self._due: dict[tuple[Kind, str, tuple[str, ...]], Example] = {}
        """Examples to write, by sort."""
        self._written: dict[str, float] = {}
        self._woken = asyncio.Event()
        self.loop = Loop("differences", self._body)

    def offer(self, example: Example) -> None:
        """Keep an example, and replace the former one of its sort. Returns at once."""
        has_room = example.sort in self._due or len(self._due) < SLOTS
        if example.difference.kind in KINDS and has_room:
            self._due[example.sort] = example
            self._woken.set()

    async def examples(self) -> list[Example]:
        """Newest first."""
        found = await asyncio.gather(*(self._values.remembered(name) for name in names()))
        read = [example for text in found if text and (example := from_json(text))]
        return sorted(read, key=lambda example: -example.difference.time_seconds)

    async def find(self, example_id: str) -> Example:
        """Raises DifferenceNotFound."""
        for example in await self.examples():
            if example.id == example_id:
                return example
        raise DifferenceNotFound(f"there is no difference {example_id!r}: baton shadow differences lists all")

    async def _body(self, loop: Loop) -> None:
        await self._woken.wait()
        # If it fails, it is tried again without a new example.
        await self.write()
        loop.well()
        if self._due:
            await asyncio.sleep(WRITE_SECONDS)
        else:
            self._woken.clear()

    async def write(self) -> None:
        """Write the entries that are due."""
        now = self._clock.monotonic()
        for sort, example in list(self._due.items()):
            name = await self._place_of(example)
            if now - self._written.get(name, float("-inf")) >= WRITE_SECONDS:
                await self._values.remember(name, to_json(example))
                self._written[name] = now
                if self._due[sort] is example:
                    del self._due[sort]

    async def _place_of(self, example: Example) -> str:
        """The name under which the sort is kept, or the next free one; its own if all are taken."""
        kind = example.difference.kind
        for step in range(SLOTS):
            name = name_of(kind, (example.slot + step) % SLOTS)
            there = from_json(await self._values.remembered(name) or "")
            if there is None or there.sort == example.sort:
                return name
        return name_of(kind, example.slot)

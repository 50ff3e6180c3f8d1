"""Watch of the written records of a store in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from uuid import uuid4

from libs.ownership.model import NEVER, Row
from libs.store.concurrency import Notifier
from libs.store.port import MOST_CHANGED, Since, UnknownPosition


@dataclass
class Changes:
    """The number of each key's newest write, oldest first."""

    epoch: str = field(default_factory=lambda: uuid4().hex)
    """Id of the numbering. A position with another epoch is unknown."""
    last: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    notifier: Notifier = field(default_factory=Notifier)

    def note(self, before: Row | None, after: Row) -> None:
        if after.write_version == (NEVER if before is None else before.write_version):
            return
        self.last += 1
        self.numbers.pop(after.key, None)
        self.numbers[after.key] = self.last
        self.notifier.notify()

    def after(self, position: str) -> Since:
        """Return the keys written after a position. Raises UnknownPosition."""
        epoch, _, number = position.partition("/")
        if epoch != self.epoch or not number.isdecimal() or int(number) > self.last:
            raise UnknownPosition
        keys: list[str] = []
        for key in reversed(self.numbers):
            if self.numbers[key] <= int(number):
                break
            keys.append(key)
        if len(keys) > MOST_CHANGED:
            raise UnknownPosition
        return Since(tuple(keys), self.here)

    @property
    def here(self) -> str:
        return f"{self.epoch}/{self.last}"


@dataclass(frozen=True)
class MemoryWatch:
    changes: Changes

    async def now(self) -> str:
        return self.changes.here

    async def since(self, position: str, wait_seconds: float) -> Since:
        until = asyncio.get_running_loop().time() + wait_seconds
        while True:
            count = self.changes.notifier.count
            found = self.changes.after(position)
            left = until - asyncio.get_running_loop().time()
            if found.keys or left <= 0 or not await self.changes.notifier.after(count, left):
                return found

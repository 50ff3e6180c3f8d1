"""A limiter of concurrent callers, and a notifier that callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.errors import Overloaded


class Limiter:
    """At most `limit` concurrent callers. The others wait in order of arrival, each at most `wait_seconds`."""

    def __init__(self, limit: int, wait_seconds: float, resource: str) -> None:
        """`resource` names, in the error's message, the thing that callers wait for."""
        self._slots = asyncio.Semaphore(limit)
        self._wait_seconds = wait_seconds
        self._resource = resource

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot while the block runs. Raises Overloaded."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded(f"waited {self._wait_seconds:g} s for {self._resource}; try again later") from None
        try:
            yield
        finally:
            self._slots.release()


class Notifier:
    """Read `count`, check your condition, then await `after(count)`: a change in between is not missed."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake all waiting callers."""
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, count: int, timeout_seconds: float) -> bool:
        """Return whether a notification came after `count`, before this call or within the timeout."""
        if self.count == count:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._next.wait()
            except TimeoutError:
                return False
        return True

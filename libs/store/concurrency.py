"""A bound for how many callers use a store at once, and a notifier that callers wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.errors import Overloaded


class Limiter:
    """At most `limit` callers at once. The others wait in the order of their arrival, at most `wait_seconds` each."""

    def __init__(self, limit: int, wait_seconds: float, what: str) -> None:
        """`what` names the thing that callers wait for in the error's message."""
        self._slots = asyncio.Semaphore(limit)
        self._wait_seconds = wait_seconds
        self._what = what

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises Overloaded."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded(f"{self._what} was waited for {self._wait_seconds:g} s") from None
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
        """Whether there was a notification after that count, before the call or within the timeout."""
        if self.count == count:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._next.wait()
            except TimeoutError:
                return False
        return True

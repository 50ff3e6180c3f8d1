"""A few at a time: for many who want the same of a store at the same moment, and must leave room for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.errors import Overloaded


class Few:
    """At most `many` at once; the others wait, in the order in which they came, for `wait_seconds` at most."""

    def __init__(self, many: int, wait_seconds: float, what: str) -> None:
        """`what`: for whoever has waited in vain, what was waited for."""
        self._places = asyncio.Semaphore(many)
        self._wait_seconds = wait_seconds
        self._what = what

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises Overloaded."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(f"{self._what} was waited for {self._wait_seconds:g} s") from None
        try:
            yield
        finally:
            self._places.release()

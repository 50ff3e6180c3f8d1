"""Waking whoever waits for something to change, as many as there are, without losing a beat."""

from __future__ import annotations

import asyncio


class Pulse:
    """Who waits notes `beats` before it looks; what changes after that look is a beat that the wait does not miss."""

    def __init__(self) -> None:
        self.beats = 0
        self._next = asyncio.Event()

    def beat(self) -> None:
        self.beats += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, beats: int, timeout_seconds: float) -> bool:
        """Whether there was a beat after that many, at once or within the timeout."""
        if self.beats == beats:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._next.wait()
            except TimeoutError:
                return False
        return True

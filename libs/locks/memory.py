"""Locks in the memory of one process: for a store that is one process. First come, first served."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.errors import LockTimeout, Overloaded
from libs.locks.port import LockState


@dataclass(frozen=True, slots=True)
class MemoryLock:
    """Cannot be lost: it lives as long as its holder's process."""

    key: str
    remaining_seconds: float = math.inf


class MemoryLocks:
    """A `LockManager`. A key that nobody holds takes no memory. Needs no closing."""

    def __init__(self, waiters_per_key: int = 1000) -> None:
        if waiters_per_key < 0:
            raise ValueError(f"waiters_per_key is {waiters_per_key}; it must be at least 0")
        self._limit = waiters_per_key
        # A key is here while it is held: with those who wait for it, in the order in which they came.
        self._held: dict[str, deque[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        waiting = sum(map(len, self._held.values()))
        return f"<MemoryLocks held={len(self._held)} waiting={waiting}>"

    @property
    def state(self) -> LockState:
        """See `LockManager.state`."""
        return LockState("memory", len(self._held))

    @asynccontextmanager
    async def hold(self, key: str, wait_seconds: float) -> AsyncIterator[MemoryLock]:
        """See `LockManager.hold`."""
        await self._acquire(key, wait_seconds)
        try:
            yield MemoryLock(key)
        finally:
            self._hand_on(key)

    async def _acquire(self, key: str, wait_seconds: float) -> None:
        waiting = self._held.get(key)
        if waiting is None:
            self._held[key] = deque()
            return
        if wait_seconds <= 0:
            raise timed_out(key, wait_seconds)
        if len(waiting) >= self._limit:
            raise Overloaded(f"{key}: {len(waiting)} callers wait for its lock already; try again a little later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            async with asyncio.timeout(wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The lock came just when its waiter was going.
                self._hand_on(key)
            elif turn in waiting:
                waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise timed_out(key, wait_seconds) from None
            raise

    def _hand_on(self, key: str) -> None:
        """To whoever has waited longest, if anyone does."""
        waiting = self._held[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._held[key]


def timed_out(key: str, wait_seconds: float) -> LockTimeout:
    """The error of a wait that was too short."""
    message = f"{key} is busy: its lock was not free within {max(wait_seconds, 0):g} s; nothing was changed: try again"
    return LockTimeout(message, key=key)

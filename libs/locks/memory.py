"""Locks in the memory of one process, for a store that is a single process. First come, first served."""

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
    """A lock that cannot be lost: it lives as long as its holder's process."""

    key: str
    remaining_seconds: float = math.inf


class MemoryLocks:
    """A `LockManager`. A free key takes no memory. Needs no closing."""

    def __init__(self, waiters_per_key: int = 1000) -> None:
        if waiters_per_key < 0:
            raise ValueError(f"waiters_per_key is {waiters_per_key}; it must be at least 0")
        self._limit = waiters_per_key
        # Keys that are held, each with its waiters in order of arrival.
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
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(granted)
        try:
            async with asyncio.timeout(wait_seconds):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                # The lock was granted just as its waiter left.
                self._hand_on(key)
            elif granted in waiting:
                waiting.remove(granted)
            if isinstance(error, TimeoutError):
                raise timed_out(key, wait_seconds) from None
            raise

    def _hand_on(self, key: str) -> None:
        """Pass the lock to the longest-waiting caller, if there is one."""
        waiting = self._held[key]
        while waiting:
            granted = waiting.popleft()
            if not granted.done():
                granted.set_result(None)
                return
        del self._held[key]


def timed_out(key: str, wait_seconds: float) -> LockTimeout:
    """Error of a wait that was too short."""
    message = f"{key} is busy: its lock was not free within {max(wait_seconds, 0):g} s; nothing was changed: try again"
    return LockTimeout(message, key=key)

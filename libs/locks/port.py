"""Guarantees of a lock manager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple, Protocol

from libs.errors import BatonError


class LocksUnavailable(BatonError):
    """The lock server is unavailable; no lock was taken."""

    code = "UNAVAILABLE"
    reason = "LOCKS_UNAVAILABLE"
    retry_seconds = 1.0


class Lock(Protocol):
    """A held lock, as its holder sees it."""

    @property
    def key(self) -> str: ...

    @property
    def remaining_seconds(self) -> float:
        """Time for which the holder may rely on the lock, by the monotonic clock; a renewal extends it. 0: the lock is
        lost for good, and another caller may have it. Infinite if locks cannot be lost."""
        ...


class LockState(NamedTuple):
    """State of the locks of one process."""

    backend: str
    """Backend of the locks: "memory", "redis"."""
    held: int = 0
    lost: int = 0
    """Number of locks since the start that were lost before they were released."""
    breaker: str = ""
    """ "closed" while the lock server answers, "open" or "probing" while it does not; "" without a lock server."""


class LockManager(Protocol):
    """Locks by key. The opener of a manager closes it, by its context manager, after all locks are released."""

    @property
    def state(self) -> LockState: ...

    def hold(self, key: str, wait_seconds: float) -> AbstractAsyncContextManager[Lock]:
        """Hold the lock from entering to leaving, as its only holder, renewed in between. Not reentrant.

        Entering waits at most `wait_seconds` for other holders; 0 tries once. Raises LockTimeout if the lock is still
        held, Overloaded if too many callers in this process wait for it, LocksUnavailable at once while locks are
        unavailable: a manager never returns a weaker lock instead. Leaving never fails: a lock that cannot be released
        expires by itself. A cancelled caller leaves nothing behind.
        """
        ...


@asynccontextmanager
async def hold_if_available(locks: LockManager, key: str, wait_seconds: float) -> AsyncIterator[Lock | None]:
    """Like `hold`, but None while locks are unavailable, for work that versions guard anyway."""
    async with AsyncExitStack() as stack:
        lock: Lock | None = None
        with suppress(LocksUnavailable):
            lock = await stack.enter_async_context(locks.hold(key, wait_seconds))
        yield lock

"""What a lock manager promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple, Protocol

from libs.errors import BatonError


class LocksUnavailable(BatonError):
    """The lock server is out of reach; no lock was taken."""

    code = "UNAVAILABLE"
    reason = "LOCKS_UNAVAILABLE"
    retry_seconds = 1.0


class Lock(Protocol):
    """A lock that is held, as its holder sees it."""

    @property
    def key(self) -> str: ...

    @property
    def remaining_seconds(self) -> float:
        """How long the holder may still rely on it, by the monotonic clock; grows when the lock is renewed. 0: it is
        lost and stays lost, somebody else may have it. Infinite where a lock cannot be lost."""
        ...


class LockState(NamedTuple):
    """How the locks of one process do."""

    backend: str
    """Where they are kept: "memory", "redis"."""
    held: int = 0
    lost: int = 0
    """Since the start: were gone before their holders had left them."""
    breaker: str = ""
    """"closed" while the lock server answers, "open" or "probing" while it does not; "" where there is none."""


class LockManager(Protocol):
    """Locks by key. Whoever opens a manager closes it, by its own context manager; a lock must be left by then."""

    @property
    def state(self) -> LockState:
        """Now."""
        ...

    def hold(self, key: str, wait_seconds: float) -> AbstractAsyncContextManager[Lock]:
        """Held from entering to leaving, by one holder at a time; kept alive in between. Not reentrant.

        Entering waits at most `wait_seconds` for other holders; 0 tries once. Raises LockTimeout when it is still held
        then, Overloaded when too many wait for it in this process, LocksUnavailable at once when locks cannot be had: a
        manager never gives a weaker lock instead. Leaving never fails: what cannot be given back runs out by itself.
        A caller that is cancelled, at whatever point, leaves nothing behind.
        """
        ...


@asynccontextmanager
async def hold_if_available(locks: LockManager, key: str, wait_seconds: float) -> AsyncIterator[Lock | None]:
    """As `hold`; without a lock (None) while locks are unavailable. For work that its versions guard anyway."""
    async with AsyncExitStack() as stack:
        lock: Lock | None = None
        with suppress(LocksUnavailable):
            lock = await stack.enter_async_context(locks.hold(key, wait_seconds))
        yield lock

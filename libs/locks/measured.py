"""Measurements of locks, around any lock manager."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from opentelemetry.metrics import Meter

from libs.clock import Clock
from libs.errors import BatonError
from libs.locks.port import Lock, LockManager, LockState
from libs.telemetry.instruments import Reading, histogram, observe
from libs.telemetry.latency import Histogram, Recent

MINUTES = 10
"""Period of the wait histogram."""

ACQUIRED = "ACQUIRED"
LEFT = "LEFT"
"""The caller left before the outcome."""


class MeasuredLocks:
    """A `LockManager` that wraps another one.

    `waiting`: number of pending requests. `outcomes`: requests since the start by outcome, which is ACQUIRED, LEFT, or
    the reason of the error.
    """

    def __init__(self, locks: LockManager, clock: Clock, meter: Meter) -> None:
        self.waiting = 0
        self.outcomes: Counter[str] = Counter()
        self._locks = locks
        self._clock = clock
        self._waits = Recent(MINUTES)
        self._durations = histogram(meter, "baton.lock.acquisition.duration")
        observe(meter, "baton.lock.held", lambda: self._read(self.state.held))
        observe(meter, "baton.lock.waiting", lambda: self._read(self.waiting))
        observe(meter, "baton.lock.lost", lambda: self._read(self.state.lost))
        observe(meter, "baton.lock.server.away", self._away)

    def __repr__(self) -> str:
        return f"<MeasuredLocks waiting={self.waiting} {dict(self.outcomes)} {self._locks!r}>"

    @property
    def state(self) -> LockState:
        """See `LockManager.state`."""
        return self._locks.state

    @property
    def waits(self) -> Histogram:
        """Histogram of the waits of the last minutes, successful or not. Writes that needed no lock count as 0."""
        return self._waits.counts(self._clock.monotonic())

    def no_lock_needed(self) -> None:
        """Count a write that succeeded without a lock as a wait of 0."""
        self._waits.add(0.0, self._clock.monotonic())

    @asynccontextmanager
    async def hold(self, key: str, wait_seconds: float) -> AsyncIterator[Lock]:
        """See `LockManager.hold`."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, key, wait_seconds)

    async def _enter(self, stack: AsyncExitStack, key: str, wait_seconds: float) -> Lock:
        began = self._clock.monotonic()
        outcome = LEFT
        self.waiting += 1
        try:
            lock = await stack.enter_async_context(self._locks.hold(key, wait_seconds))
            outcome = ACQUIRED
        except BatonError as error:
            outcome = error.reason
            raise
        finally:
            self.waiting -= 1
            self._count(outcome, began)
        return lock

    def _count(self, outcome: str, began: float) -> None:
        now = self._clock.monotonic()
        self.outcomes[outcome] += 1
        self._durations.record(now - began, {"backend": self.state.backend, "outcome": outcome})
        if outcome != LEFT:
            self._waits.add(now - began, now)

    def _read(self, value: int) -> list[Reading]:
        return [Reading(value, {"backend": self.state.backend})]

    def _away(self) -> Iterable[Reading]:
        return self._read(self.state.breaker != "closed") if self.state.breaker else ()

"""The queue of calls that wait for a store that does not answer, such as one that restarts.

A call tries its store first. If the store is out of reach, the call waits here until it may try again. During the
outage, the call with the earliest deadline tries every PROBE_SECONDS. Once the store answers a call, each answer lets
FOLLOWERS more try. So the queue drains within a few round trips, without flooding a store that has just started.

The queue is limited by the number of calls, in total and for each caller, and by the bytes of their requests. Each call
waits until its own deadline.
A waiting call counts as one fault of the store per second: waiting must not hide an outage from automatic rollback and
the gates.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from libs.errors import Overloaded
from libs.ownership.model import Store
from libs.rpc import callers
from services.router.flows.stores import Away
from services.router.flows.traffic import Traffic

T = TypeVar("T")

MOST_CALLS = 1000
"""Maximum number of calls that wait for one store or try it again."""
MOST_BYTES = 64 << 20
"""Maximum size of their requests."""
PROBE_SECONDS = 0.05
MOST_TRIES = 64
"""Calls of the queue that may try at the same time."""
FOLLOWERS = 2
"""Calls that may try after each answer."""


class QueueFull(Overloaded):
    """Too many calls wait for a store that is out of reach; try again a little later."""

    def __init__(self, away: Away) -> None:
        super().__init__()
        self.away = away


@dataclass(slots=True)
class Waiting:
    """A call in the queue."""

    operation: str
    is_read: bool
    size_bytes: int
    until: Callable[[Away], float]
    """Monotonic time until which the call may wait for the store that did not answer."""
    counted_at: float | None = None
    """Time at which the call was last counted as a fault of its store."""


@dataclass(order=True, slots=True)
class _Waiter:
    until: float
    number: int
    call: Waiting = field(compare=False)
    turn: asyncio.Future[bool] = field(compare=False)


@dataclass(slots=True)
class _Queue:
    """The queue of one store."""

    waiters: list[_Waiter] = field(default_factory=list)
    """A heap. Entries that are done stay in it until they reach the top."""
    writes: int = 0
    size_bytes: int = 0
    tries: int = 0
    away_since: float | None = None
    """Time since which the store has not answered."""
    probing: asyncio.TimerHandle | None = None


class Patience:
    """The queues of both stores. Raises QueueFull, and Away when the time of a call is over."""

    def __init__(self, traffic: Traffic, seconds: float, caller_share: float = 1.0) -> None:
        """`seconds`: the longest wait for a store; 0 disables waiting. `caller_share`: share of the calls in a queue
        that one caller may have."""
        self.seconds = seconds
        self._most_of_one = MOST_CALLS * caller_share
        self._traffic = traffic
        self._queues = {store: _Queue() for store in Store}
        self._number = 0

    def __repr__(self) -> str:
        return f"<Patience {self.seconds:g} s, waiting {dict(self._traffic.waiting)}>"

    @property
    def calls(self) -> int:
        """The number of waiting calls."""
        return self._traffic.waiting.total()

    @property
    def writes(self) -> int:
        return sum(queue.writes for queue in self._queues.values())

    def away_since(self, store: Store, now: float) -> float:
        """Return the time since which a store has not answered; `now` if it answers."""
        since = self._queues[store].away_since
        return now if since is None else since

    def heard(self, store: Store, away: Away | None) -> None:
        """Record the end of an attempt at a store: its error, or None if the store answered."""
        queue = self._queues[store]
        if away is None:
            queue.away_since = None
            for _ in range(FOLLOWERS):
                self._let_go(queue)
        elif queue.away_since is None and may_return(away):
            queue.away_since = _now()

    async def call(self, work: Callable[[], Awaitable[T]], waiting: Waiting) -> T:
        """Do the work, and repeat it through the queue while it raises Away."""
        try:
            return await work()
        except Away as error:
            away = error
        while True:
            async with self._turn(away, waiting) as in_time:
                if not in_time:
                    raise away
                try:
                    return await work()
                except Away as error:
                    away = error

    @asynccontextmanager
    async def _turn(self, away: Away, waiting: Waiting) -> AsyncIterator[bool]:
        """Wait until the call may try again. Yields false if its time is over."""
        until = waiting.until(away)
        if not may_return(away) or until <= _now():
            yield False
            return
        queue = self._queues[away.store]
        # A call that tries again keeps its waiter in the queue.
        calls = self._traffic.waiting[away.store] + queue.tries
        if calls >= MOST_CALLS or queue.size_bytes + waiting.size_bytes > MOST_BYTES:
            raise QueueFull(away) from None
        caller = callers.current.get()
        if caller is not None and caller.waiting >= self._most_of_one:
            raise QueueFull(away) from None
        if not await self._wait(away.store, queue, waiting, until):
            yield False
            return
        queue.tries += 1
        try:
            yield True
        finally:
            queue.tries -= 1

    async def _wait(self, store: Store, queue: _Queue, waiting: Waiting, until: float) -> bool:
        self._number += 1
        waiter = _Waiter(until, self._number, waiting, asyncio.get_running_loop().create_future())
        heapq.heappush(queue.waiters, waiter)
        self._traffic.waiting[store] += 1
        queue.writes += not waiting.is_read
        queue.size_bytes += waiting.size_bytes
        caller = callers.current.get()
        if caller is not None:
            caller.waiting += 1
        if queue.probing is None:
            self._probe_later(store, queue)
        try:
            return await waiter.turn
        finally:
            # If the caller leaves, its future is cancelled and the queue skips it.
            self._traffic.waiting[store] -= 1
            queue.writes -= not waiting.is_read
            queue.size_bytes -= waiting.size_bytes
            if caller is not None:
                caller.waiting -= 1

    def _probe_later(self, store: Store, queue: _Queue) -> None:
        queue.probing = asyncio.get_running_loop().call_later(PROBE_SECONDS, self._probe, store, queue)

    def _probe(self, store: Store, queue: _Queue) -> None:
        now = _now()
        queue.probing = None
        queue.waiters = [waiter for waiter in queue.waiters if not waiter.turn.done()]
        for waiter in queue.waiters:
            if waiter.until <= now:
                waiter.turn.set_result(False)
            else:
                self._count(store, waiter.call, now)
        heapq.heapify(queue.waiters)
        self._let_go(queue)
        if queue.waiters:
            self._probe_later(store, queue)

    def _count(self, store: Store, call: Waiting, now: float) -> None:
        """Count a waiting call as a fault, once a second. Its first try was counted when it failed."""
        if call.counted_at is None:
            call.counted_at = now
        elif now - call.counted_at >= 1.0:
            call.counted_at += 1.0
            self._traffic.meter.add(store, call.operation, call.is_read, None, True, now)

    def _let_go(self, queue: _Queue) -> None:
        """Let the call with the earliest deadline try."""
        while queue.waiters and queue.tries < MOST_TRIES:
            waiter = heapq.heappop(queue.waiters)
            if not waiter.turn.done():
                waiter.turn.set_result(True)
                return


def may_return(away: Away) -> bool:
    """Whether a call may wait for a store: the failed attempt did not use up its time."""
    return away.error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED


def _now() -> float:
    return asyncio.get_running_loop().time()

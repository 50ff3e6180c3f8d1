"""Locks in Redis against redis-py's own `Lock` and against a bare round trip to the same server.

Uncontended: one caller acquires and releases free locks; only the acquisition is timed. Contended: two managers, as in
two processes, with callers that all lock one record and release it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from redis.asyncio import Redis as Client

from libs.locks.memory import MemoryLocks
from libs.locks.redis import RedisLocks
from tests.bench.measure import Figure, Round, Rounds, Target, alternate
from tests.bench.site import Site

LIMIT = Target(50.0)
"""Target for the 99th percentile, in milliseconds."""
CALLERS = 8
"""Number of callers per manager."""
_WAIT_SECONDS = 30.0

Hold = Callable[[str], AbstractAsyncContextManager[object]]


async def uncontended(hold: Hold, count: int) -> Round:
    milliseconds = []
    began = time.perf_counter()
    for number in range(count):
        at = time.perf_counter()
        async with hold(f"bench/{number % 100}"):
            milliseconds.append((time.perf_counter() - at) * 1000)
    return Round(time.perf_counter() - began, milliseconds)


async def contended(holds: list[Hold], count: int) -> Round:
    """Acquire the lock `count` times in all, by callers that try again at once."""
    milliseconds: list[float] = []
    numbers = iter(range(count))

    async def caller(hold: Hold) -> None:
        for _ in numbers:
            at = time.perf_counter()
            async with hold("bench/hot"):
                milliseconds.append((time.perf_counter() - at) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(caller(hold) for hold in holds for _ in range(CALLERS)))
    return Round(time.perf_counter() - began, milliseconds)


async def round_trips(client: Client, count: int) -> Round:
    milliseconds = []
    began = time.perf_counter()
    for number in range(count):
        at = time.perf_counter()
        await client.set(f"bench:{number % 100}", "token", nx=True, px=10_000)
        milliseconds.append((time.perf_counter() - at) * 1000)
    return Round(time.perf_counter() - began, milliseconds)


async def measure(site: Site) -> list[Figure]:
    count, rounds = site.pick(2000, 500), site.pick(5, 2)
    url = site.stack.redis.url
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client.from_url(url))
        ours = [await stack.enter_async_context(RedisLocks.open(url)) for _ in range(2)]
        memory = MemoryLocks()

        def held(locks: RedisLocks | MemoryLocks) -> Hold:
            return lambda key: locks.hold(key, _WAIT_SECONDS)

        def theirs(key: str) -> AbstractAsyncContextManager[object]:
            return client.lock(f"redis-py:{key}", timeout=10, sleep=0.004, blocking_timeout=_WAIT_SECONDS)

        alone: dict[str, Callable[[int], Awaitable[Round]]] = {
            "ours": lambda _: uncontended(held(ours[0]), count),
            "theirs": lambda _: uncontended(theirs, count),
            "bare": lambda _: round_trips(client, count),
            "memory": lambda _: uncontended(held(memory), count),
        }
        crowd: dict[str, Callable[[int], Awaitable[Round]]] = {
            "ours": lambda _: contended([held(locks) for locks in ours], count),
            "theirs": lambda _: contended([theirs, theirs], count // 10),
        }
        single = await alternate(rounds, alone)
        many = await alternate(rounds, crowd)
    return [*_alone(single), *_crowded(many)]


def _alone(found: dict[str, Rounds]) -> list[Figure]:
    ours, theirs, bare, memory = (found[name] for name in ("ours", "theirs", "bare", "memory"))
    return [
        Figure("a free lock in Redis: p50", "ms", ours.p50, theirs.p50, "redis-py Lock"),
        Figure("a free lock in Redis: p99", "ms", ours.p99, theirs.p99, "redis-py Lock", LIMIT),
        Figure("a free lock in Redis: p50", "ms", ours.p50, bare.p50, "bare SET NX PX"),
        Figure("a free lock in Redis: p99", "ms", ours.p99, bare.p99, "bare SET NX PX", LIMIT),
        Figure("a free lock in memory: p99", "ms", memory.p99, bare.p99, "bare SET NX PX", LIMIT),
    ]


def _crowded(found: dict[str, Rounds]) -> list[Figure]:
    ours, theirs = found["ours"], found["theirs"]
    title = f"{2 * CALLERS} callers at 2 managers, one key"
    return [
        Figure(f"{title}: acquisitions", "/s", ours.per_second, theirs.per_second, "redis-py Lock"),
        Figure(f"{title}: wait p99", "ms", ours.p99, theirs.p99, "redis-py Lock"),
    ]

"""Faults during an acceptance run: each part is killed and paused in turn, and restored."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.asyncio import Redis as Client

from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.trial.load import Load
from libs.proving.trial.world import World
from tests.waiting import eventually

DOWN_SECONDS = 1.5
"""How long a part is gone at least. Longer than the time in which a silent peer is noticed."""
CALLS_MEANWHILE = 40
"""At least so many attempts of clients while a part is gone."""
CALLS_BETWEEN, WRITES_BETWEEN = 60, 20
"""At least so many attempts, and acknowledged writes, before the next part goes: the system serves again."""
BOUND_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """`begin` makes it, `heal` ends it; both return when it is done."""

    name: str
    begin: Callable[[], Awaitable[None]]
    heal: Callable[[], Awaitable[None]]


def process_faults(world: World) -> list[Fault]:
    """Faults of Baton's processes: SIGKILL and start again, SIGSTOP and SIGCONT."""

    def killed(name: str) -> Fault:
        return Fault(f"SIGKILL {name}", lambda: world.kill(name), lambda: world.start(name))

    def paused(name: str) -> Fault:
        return Fault(f"SIGSTOP {name}", lambda: world.pause(name), lambda: world.resume(name))

    return [fault for name in world.names for fault in (killed(name), paused(name))]


def server_faults(server: Kafka | Postgres | Redis) -> list[Fault]:
    """Faults of a server and all its children: the same signals."""
    name = server.process.command.name

    def tell(number: int) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(server.kill, number)

    return [
        Fault(f"SIGKILL {name}", tell(signal.SIGKILL), lambda: asyncio.to_thread(server.start)),
        Fault(f"SIGSTOP {name}", tell(signal.SIGSTOP), tell(signal.SIGCONT)),
    ]


def flushed(redis: Redis) -> Fault:
    """It forgets all locks, and goes on."""

    async def flush() -> None:
        async with Client.from_url(redis.url) as client:
            await client.flushall()

    async def nothing() -> None:
        pass

    return Fault("FLUSHALL redis", flush, nothing)


async def one_after_the_other(faults: list[Fault], load: Load) -> None:
    """Each fault once, under load; every part is back before the next one goes."""
    stats = load.stats

    def attempts() -> int:
        return stats.attempts

    def writes() -> int:
        return stats.acknowledged_writes

    for fault in faults:
        load.label(fault.name)
        attempted = stats.attempts
        await fault.begin()
        try:
            await asyncio.sleep(DOWN_SECONDS)
            await _reach(attempts, attempted + CALLS_MEANWHILE, f"clients call during {fault.name}")
        finally:
            await asyncio.shield(asyncio.ensure_future(fault.heal()))
        load.label("healed")
        attempted, written = stats.attempts, stats.acknowledged_writes
        await _reach(attempts, attempted + CALLS_BETWEEN, f"clients call after {fault.name}")
        await _reach(writes, written + WRITES_BETWEEN, f"writes go on after {fault.name}")


async def _reach(count: Callable[[], int], wanted: int, what: str) -> None:
    await eventually(lambda: count() >= wanted, BOUND_SECONDS, what)

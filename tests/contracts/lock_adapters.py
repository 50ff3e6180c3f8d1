"""Lock managers for the suites: two users of the same locks, and a view of the remaining locks."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis as Client

from libs.locks.port import LockManager
from libs.locks.redis import RedisLockSettings
from libs.proving.servers.redis import Redis
from tests.waiting import eventually

KEY = "sandboxes/one"
WAIT_SECONDS = 10.0
WORK_STEPS = 200
# Where a busy machine must not be taken for a server that is away.
PATIENT = RedisLockSettings(command_seconds=WAIT_SECONDS)
# Redis drops a lock without renewals within the time of a test. A dead server refuses a command at once.
SHORT = RedisLockSettings(ttl_seconds=0.6, renew_seconds=0.12, probe_seconds=0.05, command_seconds=WAIT_SECONDS)
# A silent server is noticed within the time of a test, and a busy machine can still answer in time.
PROBING = RedisLockSettings(probe_seconds=0.05, command_seconds=2.0)


@dataclass
class Pair:
    """Two users of the same locks, in two processes if the technology allows, and the remaining locks."""

    first: LockManager
    second: LockManager
    client: Client | None = None

    async def is_free(self) -> bool:
        return not await self.left()

    async def becomes_free(self) -> None:
        free: bool = await eventually(self.is_free)
        assert free

    async def left(self) -> list[str]:
        """Locks that are held or awaited, in the managers and in the server."""
        managers = [repr(manager) for manager in (self.first, self.second)]
        left = [text for text in managers if re.search(r"(held|waiting)=[1-9]", text)]
        if self.client is not None:
            left += [str(key) for key in await self.client.keys("*")]
        return left


@asynccontextmanager
async def locks_client(server: Redis) -> AsyncIterator[Client]:
    """An empty server, looked at from outside."""
    async with Client.from_url(server.url, decode_responses=True) as client:
        await client.flushall()
        yield client


async def pass_through(locks: LockManager, wait_seconds: float = WAIT_SECONDS) -> None:
    async with locks.hold(KEY, wait_seconds):
        pass


async def is_unclaimed(client: Client) -> bool:
    return not await client.exists(f"baton:lock:{KEY}:next")

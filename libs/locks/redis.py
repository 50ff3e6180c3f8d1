"""Locks in Redis, for a store of several processes.

A lock is a key with its holder's token and a time to live, so it expires if its holder dies. The holder renews it. The
holder treats it as lost once most of the time to live has passed without a renewal, well before Redis drops it, and
when a renewal finds another token or none (after a flush of the server). Time is the holder's monotonic clock.

Callers of one process queue here in order, and only the first of them polls Redis. Between processes, the first one
that asked while the lock was held claims the next grant: until it got the lock or stopped asking, no other caller gets
it. So a busy process cannot pass a lock on within itself forever.

While Redis does not answer, every call is refused at once, and one task probes for its return. If Redis answers with an
error (memory full, replica), the call is refused as well, but later calls are tried.

Source of the scheme, and of its limits: https://redis.io/docs/latest/develop/use/patterns/distributed-locks/
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from libs.clock import Clock, SystemClock
from libs.locks.breaker import Breaker
from libs.locks.memory import MemoryLocks, timed_out
from libs.locks.port import LockState, LocksUnavailable
from libs.locks.redis_security import RedisSecurity, connection_options
from libs.tasks import Background, Loop

log = logging.getLogger(__name__)

USABLE = 0.6
"""Share of the time to live for which a lock counts as held."""

_NO_ANSWER = (RedisError, OSError, TimeoutError, ValueError)
"""ValueError stands for an answer that Redis never gives: another server has its address."""

_DRAIN_SECONDS = 1.0
_FIRST_POLL_SECONDS = 0.002
_LONGEST_POLL_SECONDS = 0.016
_LONGEST_POLL_OF_NEXT_SECONDS = 0.002
_CLAIM_SUFFIX = ":next"
"""Suffix of a lock's name: the key of the claim on its next grant."""

# KEYS: the lock; the claim on the next grant. ARGV: the token; times to live of lock and claim in milliseconds, the
# latter 0 if the caller does not wait. A token that already holds the lock takes it again, since an attempt whose
# answer was lost may be repeated.
_BUSY, _TAKEN, _NEXT = 0, 1, 2
_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
local claim = redis.call('GET', KEYS[2])
if holder == ARGV[1] or (not holder and (not claim or claim == ARGV[1])) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  if claim == ARGV[1] then redis.call('DEL', KEYS[2]) end
  return 1
end
if ARGV[3] ~= '0' and (not claim or claim == ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
  return 2
end
return 0
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class RedisLockSettings:
    """Times and limits of the locks of one process."""

    ttl_seconds: float = 10.0
    renew_seconds: float = 3.0
    probe_seconds: float = 0.5
    """Interval of probes while Redis is unavailable."""
    claim_seconds: float = 0.15
    """Lifetime of a claim after its owner's last request, which repeats every few milliseconds."""
    command_seconds: float = 1.0
    """Time limit of one command: waiting for a connection, connecting, sending, the answer. By then the first call to
    an unavailable server fails; calls that wait behind it fail with it, and later ones at once. Only a server that
    hangs takes that long: one that has ended refuses connections. A shorter limit mistakes a machine that is busy for a
    moment for a lock server that is away, and every call for a lock fails until the next probe."""
    connections: int = 16
    waiters_per_key: int = 1000
    prefix: str = "baton:lock:"

    def __post_init__(self) -> None:
        if not 0 < self.renew_seconds < self.ttl_seconds * USABLE:
            expected = f"more than 0 and less than {USABLE} of ttl_seconds ({self.ttl_seconds:g})"
            raise ValueError(f"renew_seconds is {self.renew_seconds:g}; it must be {expected}")
        if self.probe_seconds <= 0:
            raise ValueError(f"probe_seconds is {self.probe_seconds:g}; it must be more than 0")
        if self.claim_seconds <= _LONGEST_POLL_SECONDS:
            expected = f"more than {_LONGEST_POLL_SECONDS:g}, the time until it is asked again"
            raise ValueError(f"claim_seconds is {self.claim_seconds:g}; it must be {expected}")
        if self.command_seconds <= 0:
            raise ValueError(f"command_seconds is {self.command_seconds:g}; it must be more than 0")
        if self.connections < 1:
            raise ValueError(f"connections is {self.connections}; it must be at least 1")


class RedisLock:
    """A lock that is held or requested."""

    def __init__(self, key: str, token: str, ttl_seconds: float, clock: Clock) -> None:
        self.key = key
        self.token = token
        self.taken = False
        self.is_next = False
        """Whether it has or had a claim on the next grant."""
        self.counted_lost = False
        self.abandoned = False
        """Whether its caller has left. An attempt that still gets the lock releases it."""
        self.renewed_at = clock.monotonic()
        """Time at which the last command that set its time to live was sent."""
        self._usable_seconds = ttl_seconds * USABLE
        self._clock = clock
        self._lost = False

    def __repr__(self) -> str:
        return f"<RedisLock {self.key} {self.token} remaining={self.remaining_seconds:.3f}>"

    @property
    def remaining_seconds(self) -> float:
        """See `Lock.remaining_seconds`."""
        left = self.renewed_at + self._usable_seconds - self._clock.monotonic()
        if left <= 0:
            self._lost = True
        return 0.0 if self._lost else left

    def lose(self) -> None:
        self._lost = True


class RedisLocks:
    """A `LockManager`, made by `RedisLocks.open`. `renewals` and `lost` count events of its locks."""

    def __init__(
        self,
        url: str,
        settings: RedisLockSettings,
        clock: Clock,
        chance: Callable[[], float],
        security: RedisSecurity | None = None,
    ) -> None:
        """Use `open`."""
        pool = BlockingConnectionPool(
            **connection_options(url, security or RedisSecurity()),
            max_connections=settings.connections,
            timeout=settings.command_seconds,
            socket_timeout=settings.command_seconds,
            socket_connect_timeout=settings.command_seconds,
            # A retry inside the client would hide how long a command takes; the breaker and the caller decide.
            retry=Retry(NoBackoff(), 0),
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self.renewals = 0
        self.lost = 0
        self.breaker = Breaker(settings.probe_seconds, clock)
        self._client: Redis = Redis.from_pool(pool)
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._local = MemoryLocks(settings.waiters_per_key)
        self._locks: set[RedisLock] = set()
        self._refusal = ""
        self._background = Background(limit=100_000, name="locks")
        self._tokens = (f"{uuid.uuid4()}:{number}" for number in itertools.count(1))
        # Tokens of attempts whose answers were lost, with the time until which Redis may know them.
        self._doubtful: dict[str, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<RedisLocks held={len(self._locks)} {self.breaker!r} {self._local!r}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        settings: RedisLockSettings | None = None,
        *,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        security: RedisSecurity | None = None,
    ) -> AsyncIterator[RedisLocks]:
        """A manager on the server at `url` (redis://… or rediss://…), which may be unavailable. Raises TlsUnfit.

        `chance` returns 0 to 1, for the pauses between attempts. Locks that are still held at the end are not released:
        they expire.
        """
        locks = cls(url, settings or RedisLockSettings(), clock or SystemClock(), chance, security)
        keeper = asyncio.create_task(Loop("locks", locks._keep).run())
        try:
            yield locks
        finally:
            keeper.cancel()
            await asyncio.wait([keeper], timeout=_DRAIN_SECONDS)
            await locks._background.drain(_DRAIN_SECONDS)
            await locks._client.aclose()

    @property
    def state(self) -> LockState:
        """See `LockManager.state`."""
        return LockState("redis", len(self._locks), self.lost, self.breaker.state.value)

    @asynccontextmanager
    async def hold(self, key: str, wait_seconds: float) -> AsyncIterator[RedisLock]:
        """See `LockManager.hold`. A server that does not answer can delay a call by command_seconds once."""
        until = self._clock.monotonic() + wait_seconds
        self._check_reachable()
        async with self._local.hold(key, wait_seconds):
            lock = await self._acquire(key, until, wait_seconds)
            self._locks.add(lock)
            try:
                yield lock
            finally:
                self._locks.discard(lock)
                self._count_if_lost(lock)
                await self._background.run(self._release(lock))

    async def _acquire(self, key: str, until: float, wait_seconds: float) -> RedisLock:
        lock = RedisLock(key, self._token(key), self._settings.ttl_seconds, self._clock)
        try:
            await self._take(lock, until, wait_seconds)
        except BaseException:
            lock.abandoned = True
            if lock.taken or lock.is_next:
                await self._background.run(self._release(lock))
            raise
        return lock

    async def _take(self, lock: RedisLock, until: float, wait_seconds: float) -> None:
        pause = _FIRST_POLL_SECONDS
        while True:
            await self._background.run(self._attempt(lock, waits=wait_seconds > 0))
            if lock.taken:
                return
            left = until - self._clock.monotonic()
            if left <= 0:
                raise timed_out(lock.key, wait_seconds)
            await asyncio.sleep(min(pause * (0.5 + self._chance()), left))
            pause = min(pause * 2, _LONGEST_POLL_OF_NEXT_SECONDS if lock.is_next else _LONGEST_POLL_SECONDS)

    async def _attempt(self, lock: RedisLock, *, waits: bool) -> None:
        """One attempt, in a task of its own: its answer is handled even if its caller has left."""
        lock.renewed_at = self._clock.monotonic()
        try:
            answer = await self._command(_ACQUIRE, lock, self._settings.claim_seconds if waits else 0.0)
        except LocksUnavailable:
            self._doubt(lock)
            raise
        lock.taken, lock.is_next = answer == _TAKEN, answer == _NEXT
        if lock.abandoned and answer != _BUSY:
            await self._release(lock)

    async def _release(self, lock: RedisLock) -> None:
        try:
            await self._command(_RELEASE, lock)
        except LocksUnavailable as error:
            log.info("%s was not given back, it runs out by itself: %s", lock, error)

    async def _keep(self, loop: Loop) -> None:
        """One round of the task that renews locks and probes Redis."""
        await asyncio.sleep(min(self._settings.renew_seconds / 6, self._settings.probe_seconds))
        for lock in list(self._locks):
            self._count_if_lost(lock)
        if self.breaker.begin_probe():
            await self._probe()
        if not self.breaker.admits:
            loop.trouble = "the lock server is away"
            return
        await self._release_doubtful()
        due = self._clock.monotonic() - self._settings.renew_seconds
        for lock in [lock for lock in self._locks if lock.renewed_at <= due and lock.remaining_seconds]:
            await self._renew(lock)
        loop.well()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(self._settings.command_seconds):
                await self._client.ping()
        except ResponseError:
            self._answered()
        except _NO_ANSWER:
            self.breaker.failed()
        except BaseException:
            # Otherwise no further probe would ever be made.
            self.breaker.failed()
            raise
        else:
            self._answered()

    async def _renew(self, lock: RedisLock) -> None:
        sent_at = self._clock.monotonic()
        try:
            renewed = await self._command(_RENEW, lock)
        except LocksUnavailable:
            # The next round tries again while the lock is still held.
            return
        if renewed:
            self.renewals += 1
            lock.renewed_at = sent_at
        elif lock in self._locks:
            lock.lose()
            self._count_if_lost(lock)

    def _count_if_lost(self, lock: RedisLock) -> None:
        """Count a lost lock, once."""
        if not lock.counted_lost and not lock.remaining_seconds:
            lock.counted_lost = True
            self.lost += 1
            log.warning("%s is lost: Redis has forgotten it, or could not be reached to renew it", lock)

    async def _release_doubtful(self) -> None:
        """Release locks of attempts whose answers were lost; otherwise other callers wait until they expire."""
        doubtful, self._doubtful = self._doubtful, {}
        for key, (token, until) in doubtful.items():
            if self._clock.monotonic() < until:
                await self._release(RedisLock(key, token, self._settings.ttl_seconds, self._clock))

    async def _command(self, script: str, lock: RedisLock, claim_seconds: float = 0.0) -> int:
        self._check_reachable()
        name = self._settings.prefix + lock.key
        milliseconds = [int(seconds * 1000) for seconds in (self._settings.ttl_seconds, claim_seconds)]
        try:
            async with asyncio.timeout(self._settings.command_seconds):
                answer = await self._client.eval(script, 2, name, name + _CLAIM_SUFFIX, lock.token, *milliseconds)
        except ResponseError as error:
            self._answered(str(error))
            raise LocksUnavailable(
                "the lock server refuses; no lock was taken: retry, or wait for its operator", detail=str(error)
            ) from error
        except _NO_ANSWER as error:
            if self.breaker.admits:
                log.warning("the lock server is away: %s: %s", type(error).__name__, error)
            self.breaker.failed()
            raise LocksUnavailable(detail=f"{type(error).__name__}: {error}") from error
        self._answered()
        return int(answer)

    def _answered(self, refusal: str = "") -> None:
        """Record an answer of the server. Its errors are logged once, not for every call."""
        if not self.breaker.admits:
            log.info("the lock server is back")
        if refusal and not self._refusal:
            log.warning("the lock server refuses: %s", refusal)
        self.breaker.succeeded()
        self._refusal = refusal

    def _check_reachable(self) -> None:
        if not self.breaker.admits:
            raise LocksUnavailable()

    def _token(self, key: str) -> str:
        """A new token, or that of an attempt on this key that may have taken the lock."""
        token, until = self._doubtful.pop(key, ("", 0.0))
        return token if token and self._clock.monotonic() < until else next(self._tokens)

    def _doubt(self, lock: RedisLock) -> None:
        now = self._clock.monotonic()
        self._doubtful = {key: doubt for key, doubt in self._doubtful.items() if now < doubt[1]}
        self._doubtful[lock.key] = (lock.token, now + self._settings.ttl_seconds)

"""Hands buckets over until each is where the setting wants it: first its absence, so that new records are made there,
then its records, in batches, under live traffic.

The mover keeps nothing between passes. A pass looks at both stores, sees what is not at home, and moves that; so it can
be interrupted anywhere, by another router's mover or by its own end, and when the setting changes the next pass simply
sees another home. That is how it is told to go back while it runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from libs.ownership.model import BUCKETS, Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc.tasks import Loop
from services.router.control.port import Progress
from services.router.core.phase import Setting
from services.router.core.plan import home
from services.router.flows.forward import Steering
from services.router.flows.handoff import STEP_SECONDS, Handoffs
from services.router.flows.relay import Clock, Leases
from services.router.flows.stores import Stores

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Buckets under way at once."""

BATCH = 200
"""Records of one release."""

BUSY_ROUNDS = 5
"""How often a pass asks again for records that were busy; what is left waits for the next pass."""

IDLE_SECONDS = 2.0
"""Between looks when all is at home: a call that another router planned by an older setting may take records away."""

LEASE_NAME = "mover"
LEASE_SECONDS = 5.0


@dataclass(slots=True)
class Bucket:
    """Where a bucket's parts are."""

    number: int
    absence: Store | None
    """Its owner; None while it is on its way."""
    owned: dict[Store, int] = field(default_factory=dict)
    """Records by owner."""

    def is_at(self, store: Store) -> bool:
        return self.absence is store and not self.owned.get(store.other)


class Changes(Steering, Protocol):
    """Setting and flags, and when they change."""

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        """Returns when the setting is another one than `since`, or after the time."""
        ...


class Rate:
    """Records per second over the last seconds."""

    def __init__(self, clock: Clock, window_seconds: float = 5.0) -> None:
        self._clock = clock
        self._window = window_seconds
        self._samples: deque[tuple[float, int]] = deque(maxlen=1000)

    def add(self, count: int) -> None:
        self._samples.append((self._clock.monotonic(), count))

    @property
    def per_second(self) -> float:
        now = self._clock.monotonic()
        while self._samples and self._samples[0][0] < now - self._window:
            self._samples.popleft()
        if not self._samples:
            return 0.0
        return sum(count for _, count in self._samples) / max(now - self._samples[0][0], 0.1)


class Mover:
    """`run_once` is the body of a supervised loop: one pass, then a wait."""

    def __init__(
        self,
        stores: Stores,
        handoffs: Handoffs,
        steering: Changes,
        leases: Leases,
        holder: str,
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._handoffs = handoffs
        self._steering = steering
        self._leases = leases
        self._holder = holder
        self._clock = clock
        self._rate = Rate(clock)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.progress = Progress("handover", running=False)
        self.buckets_at_b: int | None = None
        """Buckets of which A owns neither a record nor the absence; None while not known."""
        self.buckets_to_b = 0
        self._settled_for: Setting | None = None
        self.measured_rate = 0.0
        """Records per second of the last pass that moved something."""

    @property
    def settled(self) -> bool:
        """Everything is where the current setting wants it. Not so when the setting changed since the last look."""
        return self._settled_for is not None and self._settled_for == self._steering.current

    async def run_once(self, loop: Loop) -> None:
        setting = self._steering.current
        if not await self._leases.lease(LEASE_NAME, self._holder, LEASE_SECONDS):
            buckets = await self._look()
            self._judge(buckets)
            self.progress = replace(self.progress, running=False, note="another router moves the buckets")
            loop.well()
            await self._steering.changed(setting, IDLE_SECONDS)
            return
        buckets = await self._look()
        away = self._judge(buckets)
        if away:
            await self._pass(away, setting)
        loop.well()
        if not away:
            self.progress = replace(self.progress, running=False, note="every bucket is where it should be")
            await self._steering.changed(setting, IDLE_SECONDS)

    async def _look(self) -> Mapping[int, Bucket]:
        """All buckets as they are."""
        buckets = {number: Bucket(number, None) for number in range(BUCKETS)}
        for store, client in self._stores.items():
            replication = client.replication
            absences = await client.ask(replication.ListAbsences, pb.ListAbsencesRequest(), STEP_SECONDS)
            for absence in absences.absences:
                if absence.owner == STORE_NUMBERS[store]:
                    buckets[absence.bucket].absence = store
            digests = await client.ask(replication.DigestBuckets, pb.DigestBucketsRequest(), 5 * STEP_SECONDS)
            for digest in digests.buckets:
                buckets[digest.bucket].owned[store] = digest.owned
        return buckets

    def _judge(self, buckets: Mapping[int, Bucket]) -> Sequence[Bucket]:
        """Keeps what the status shows; returns the buckets that are not at home."""
        setting, flags = self._steering.current, self._steering.flags
        homes = {number: home(setting, flags, number) for number in buckets}
        away = [bucket for number, bucket in buckets.items() if not bucket.is_at(homes[number])]
        self.buckets_at_b = sum(bucket.is_at(Store.B) for bucket in buckets.values())
        self.buckets_to_b = sum(store is Store.B for store in homes.values())
        self._settled_for = None if away else setting
        return away

    async def _pass(self, away: Sequence[Bucket], setting: Setting) -> None:
        flags = self._steering.flags
        total = sum(bucket.owned.get(home(setting, flags, bucket.number).other, 0) for bucket in away)
        self.progress = Progress("handover", running=True, total=total, note=f"moving {len(away)} buckets")
        started = self._clock.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for bucket in away:
                    await self._slots.acquire()
                    if self._steering.current != setting:
                        self._slots.release()
                        break
                    if self._clock.monotonic() - started > LEASE_SECONDS / 2:
                        await self._leases.lease(LEASE_NAME, self._holder, LEASE_SECONDS)
                        started = self._clock.monotonic()
                    task = group.create_task(self._move(bucket, home(setting, flags, bucket.number), setting))
                    task.add_done_callback(lambda _: self._slots.release())
        except BaseExceptionGroup as failures:
            # The others were cancelled because of the first; a pass that is cut short is simply begun again.
            raise failures.exceptions[0] from None
        if self.progress.rate:
            self.measured_rate = self.progress.rate
        self.progress = replace(self.progress, running=False)

    async def _move(self, bucket: Bucket, to: Store, setting: Setting) -> None:
        if bucket.absence is to.other:
            await self._handoffs.move_absence(bucket.number, to)
        elif bucket.absence is None:
            await self._handoffs.finish_absence(bucket.number)
        source = self._stores[to.other]
        keys = await self._handoffs.keys(source, bucket.number, owned_only=True)
        for start in range(0, len(keys), BATCH):
            if self._steering.current != setting:
                return
            await self._move_records(keys[start : start + BATCH], to)

    async def _move_records(self, keys: Sequence[str], to: Store) -> None:
        source = self._stores[to.other]
        for _ in range(BUSY_ROUNDS):
            request = pb.ReleaseRecordsRequest(keys=keys, to=STORE_NUMBERS[to])
            answer: pb.ReleaseRecordsResponse = await source.ask(
                source.replication.ReleaseRecords, request, 5 * STEP_SECONDS
            )
            released = [result for result in answer.results if result.outcome == _Outcome.OUTCOME_RELEASED]
            if released:
                await self._handoffs.adopt([result.record for result in released], to)
            self._rate.add(len(released))
            self.progress = replace(self.progress, done=self.progress.done + len(released), rate=self._rate.per_second)
            busy = [result.key for result in answer.results if result.outcome == _Outcome.OUTCOME_BUSY]
            keys = [*answer.remaining, *busy]
            if not keys:
                return


_Outcome = pb.ReleaseRecordsResponse

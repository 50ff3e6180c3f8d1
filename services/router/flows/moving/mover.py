"""Hands buckets over until each is where the setting wants it: first its absence, so that new records are made there,
then its records, in batches, under live traffic.

The mover keeps nothing between passes. A pass looks at both stores, sees what is not at home, and moves that; so it can
be interrupted anywhere, by another router's mover or by its own end, and when the setting changes the next pass simply
sees another home. That is how it is told to go back while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import BUCKETS, Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop, all_or_none
from services.router.control.port import Leases
from services.router.core.phase import Setting
from services.router.core.plan import Aim, Flags, aim, home
from services.router.flows.moving.bucket_owners import Absences, Move
from services.router.flows.moving.transfer import BULK_SECONDS, Transfer
from services.router.flows.rate import Rate
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Stores

GROUP = 32
"""Buckets under way at once: enough to make many small ones cheap, few enough that their absences are back soon."""

WORKERS = 3
"""Groups under way at once: while one store adopts for one of them, the other releases for the next."""

BATCH = 200
"""Records of one release."""

BUSY_ROUNDS = 5
"""How often a pass asks again for records that were busy; what is left waits for the next pass."""

IDLE_SECONDS = 2.0
"""Between looks when all is at home: a call that another router planned by an older setting may take records away."""

STUCK_SECONDS = 0.5
"""After a pass that moved nothing: what is left is busy, or cannot leave, and each look reads all of both stores."""

LEASE_NAME = "mover"
LEASE_SECONDS = 5.0


Group = tuple[Sequence["Bucket"], Store]
"""Some buckets and where they go."""


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


def _groups(away: Sequence[Bucket], homes: Mapping[int, Store]) -> list[Group]:
    found: list[Group] = []
    for to in Store:
        going = [bucket for bucket in away if homes[bucket.number] is to]
        found += [(going[start : start + GROUP], to) for start in range(0, len(going), GROUP)]
    return found


class Changes(Steering, Protocol):
    """Setting and flags, and when they change."""

    @property
    def lasting_flags(self) -> Flags:
        """Without what may be over in a moment: records do not follow it."""
        ...

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        """Returns when the setting is another one than `since`, or after the time."""
        ...


@dataclass(frozen=True, slots=True)
class Handover:
    """The pass that runs, or ran last."""

    running: bool = False
    done: int = 0
    """Records, as is `total`."""
    total: int = 0
    rate: float = 0.0
    """Records per second over the last seconds."""
    note: str = ""
    """What it does, or why it waits."""

    @property
    def eta_seconds(self) -> float:
        """Seconds left at this rate; negative when unknown."""
        left = max(0, self.total - self.done)
        return left / self.rate if self.rate > 0 else (0.0 if not left else -1.0)


class Mover:
    """`run_once` is the body of a supervised loop: one pass, then a wait."""

    def __init__(
        self,
        stores: Stores,
        transfer: Transfer,
        steering: Changes,
        leases: Leases,
        holder: str,
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._transfer = transfer
        self._absences = Absences(transfer)
        self._steering = steering
        self._leases = leases
        self._holder = holder
        self._clock = clock
        self._rate = Rate(clock)
        self.progress = Handover()
        self.buckets_at_b: int | None = None
        """Buckets of which A owns neither a record nor the absence; None while not known."""
        self.buckets_to_b = 0
        self._settled_for: Aim | None = None
        self._leased_until = 0.0
        self._moves = Move()
        """Of the pass that runs, or ran last."""
        self.measured_rate = 0.0
        """Records per second of the last pass that moved something."""

    @property
    def settled(self) -> bool:
        """Everything is where setting and flags want it. Not so when they changed since the last look."""
        return self._settled_for is not None and self._settled_for == self._aim()

    def _aim(self) -> Aim:
        return aim(self._steering.current, self._steering.lasting_flags)

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
        try:
            moved = bool(away) and await self._pass(away)
        finally:
            # A store that fails a share of its calls ends most passes. One that moved something is followed at once.
            if away and self._has_moved:
                loop.well()
        loop.well()
        if not away:
            self.progress = replace(self.progress, running=False, note="every bucket is where it should be")
            await self._steering.changed(setting, IDLE_SECONDS)
        elif not moved:
            await self._steering.changed(setting, STUCK_SECONDS)

    async def _look(self) -> Mapping[int, Bucket]:
        """All buckets as they are. When they cannot be seen, nobody says that they are settled."""
        try:
            return await self._ask_both()
        except BatonError:
            self._settled_for = None
            raise

    async def _ask_both(self) -> Mapping[int, Bucket]:
        buckets = {number: Bucket(number, None) for number in range(BUCKETS)}
        for store, client in self._stores.items():
            for absence in await self._transfer.absences(store):
                if absence.owner == STORE_NUMBERS[store]:
                    buckets[absence.bucket].absence = store
            request = pb.DigestBucketsRequest(counts_only=True)
            counts = await client.ask(client.replication.DigestBuckets, request, BULK_SECONDS)
            for counted in counts.buckets:
                buckets[counted.bucket].owned[store] = counted.owned
        return buckets

    def _judge(self, buckets: Mapping[int, Bucket]) -> Sequence[Bucket]:
        """Keeps what the status shows; returns the buckets that are not at home."""
        setting, flags = self._steering.current, self._steering.lasting_flags
        homes = {number: home(setting, flags, number) for number in buckets}
        away = [bucket for number, bucket in buckets.items() if not bucket.is_at(homes[number])]
        self.buckets_at_b = sum(bucket.is_at(Store.B) for bucket in buckets.values())
        self.buckets_to_b = sum(store is Store.B for store in homes.values())
        self._settled_for = None if away else aim(setting, flags)
        return away

    async def _pass(self, away: Sequence[Bucket]) -> bool:
        """Whether it moved anything, or was called off."""
        setting, flags = self._steering.current, self._steering.lasting_flags
        wanted = aim(setting, flags)
        homes = {bucket.number: home(setting, flags, bucket.number) for bucket in away}
        total = sum(bucket.owned.get(homes[bucket.number].other, 0) for bucket in away)
        self.progress = Handover(running=True, total=total, note=f"moving {len(away)} buckets")
        self._leased_until = self._clock.monotonic() + LEASE_SECONDS / 2
        groups = iter(_groups(away, homes))
        self._moves = Move()
        await all_or_none([self._work(groups, wanted) for _ in range(WORKERS)])
        if self.progress.rate:
            self.measured_rate = self.progress.rate
        self.progress = replace(self.progress, running=False, note=self._kept_note() or self.progress.note)
        return self._has_moved or self._aim() != wanted

    @property
    def _has_moved(self) -> bool:
        """Whether the pass that runs, or ran last, moved buckets or records."""
        return self._moves.arrived > 0 or self.progress.done > 0

    def _kept_note(self) -> str:
        """Why buckets or records stay, by the first of them; "" if all may move."""
        if kept := self._moves.kept:
            first = min(kept)
            more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
            return f"bucket {first}{more} stays where it is: {kept[first]}"
        if large := sorted(self._transfer.too_large):
            more = f" (and {len(large) - 1} more)" if len(large) > 1 else ""
            return f"{large[0]}{more} stays where it is: larger than an event may be, make it smaller or delete it"
        return ""

    async def _work(self, groups: Iterator[Group], wanted: Aim) -> None:
        """Takes one group after the other, until there is none or another aim."""
        for group in groups:
            if self._aim() != wanted:
                return
            await self._keep_lease()
            buckets, to = group
            left = await self._move(buckets, to, wanted)
            if self.buckets_at_b is not None:
                gone = len(buckets) - len(left)
                self.buckets_at_b += gone if to is Store.B else -sum(b.is_at(Store.B) for b in buckets)

    async def _keep_lease(self) -> None:
        now = self._clock.monotonic()
        if now > self._leased_until:
            # Before the call: the other groups need not ask as well.
            self._leased_until = now + LEASE_SECONDS / 2
            await self._leases.lease(LEASE_NAME, self._holder, LEASE_SECONDS)

    async def _move(self, group: Sequence[Bucket], to: Store, wanted: Aim) -> set[int]:
        """New records first: from then on they are made at the target. Then the records that are there.

        Returns the buckets that stay, or of which records are left.
        """
        moves: list[Move] = []
        if owned := [bucket.number for bucket in group if bucket.absence is to.other]:
            moves.append(await self._absences.move(owned, to))
        if under_way := [bucket.number for bucket in group if bucket.absence is None]:
            moves.append(await self._absences.finish(under_way))
        for move in moves:
            self._moves.add(move)
        listed = [move.listed[to] for move in moves if to in move.listed]
        keys = [key for found in listed for key in found.owned]
        known = {number for found in listed for number in found.buckets}
        others = [bucket.number for bucket in group if bucket.number not in known]
        keys += await self._transfer.keys(to.other, others, owned_only=True)
        left: list[str] = []
        for start in range(0, len(keys), BATCH):
            if self._aim() != wanted:
                left += keys[start:]
                break
            left += await self._move_records(keys[start : start + BATCH], to)
        return {bucket_of(key) for key in left}.union(*(move.kept for move in moves))

    async def _move_records(self, keys: Sequence[str], to: Store) -> Sequence[str]:
        """Returns those that could not be had."""
        left = keys
        for _ in range(BUSY_ROUNDS):
            failed = await self._transfer.take(left, to)
            moved = len(left) - len(failed)
            self._rate.add(moved)
            self.progress = replace(self.progress, done=self.progress.done + moved, rate=self._rate.per_second)
            left = failed
            if not left:
                break
        return left

"""The mover: hand buckets over until each is at its home, the store that the setting gives it.

For each bucket it first hands over ownership of the bucket, so that the target creates new records, then the existing
records in batches, under live traffic. A record whose cohort wants it elsewhere stays where it is, or goes to the other
store alone: records and buckets have owners of their own.

The mover keeps no state between passes. A pass reads both stores and moves every bucket that is not at home. So a pass
can be interrupted at any point, and after a change of the setting the next pass moves buckets to their new homes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import BUCKETS, Store, bucket_of
from libs.ownership.terms import seizer_of
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.tasks import Loop, all_or_none
from services.router.control.port import Leases
from services.router.core.bucket_runs import BucketState
from services.router.core.phase import Setting
from services.router.core.plan import Aim, Flags, aim, home
from services.router.flows.moving.bucket_moves import BucketMoves, Move
from services.router.flows.moving.buckets import Bucket, Group, groups
from services.router.flows.moving.bulk import BulkMoves, Strays
from services.router.flows.moving.cohort_records import CohortRecords, stays
from services.router.flows.moving.transfer import BULK_SECONDS, Transfer
from services.router.flows.rate import Rate
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Stores

WORKERS = 3
"""Groups under way at once: while one store adopts for one group, the other releases for the next."""

BATCH = 200
"""Records per release."""

BUSY_ROUNDS = 5
"""Retries for busy records in one pass. The rest waits for the next pass."""

IDLE_SECONDS = 2.0
"""Pause between checks while all buckets are at home. A router with an older setting may still move records away."""

STUCK_SECONDS = 0.5
"""Pause after a pass that moved no record: the rest is busy or cannot leave, and each check reads both stores."""

LEASE_NAME = "mover"
LEASE_SECONDS = 5.0


class Changes(Steering, Protocol):
    """Setting and flags, with a notification of changes."""

    @property
    def lasting_flags(self) -> Flags:
        """Flags without short-lived values, which do not move records."""
        ...

    async def changed(self, since: Setting, timeout_seconds: float) -> Setting:
        """Wait until the setting differs from `since`, or for the time."""
        ...


@dataclass(frozen=True, slots=True)
class Handover:
    """Progress of the current or last pass."""

    running: bool = False
    done: int = 0
    """Number of records moved, of `total`."""
    total: int = 0
    rate: float = 0.0
    """Records per second over the last seconds."""
    note: str = ""
    """The current step, or the reason for waiting."""

    @property
    def eta_seconds(self) -> float:
        """Seconds left at this rate; negative when unknown."""
        left = max(0, self.total - self.done)
        return left / self.rate if self.rate > 0 else (0.0 if not left else -1.0)


def _reported(state: BucketState, store: Store, owner: record_pb2.BucketOwner) -> BucketState:
    """The state of a bucket after one store's report."""
    if owner.owner == STORE_NUMBERS[store]:
        seized = owner.term > 0 and seizer_of(owner.term) is store
        return state._replace(owner=store, arrived=state.arrived and state.target is store, seized=seized)
    return state._replace(owner=None) if state.owner is store else state


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
        self._bucket_owners = BucketMoves(transfer)
        self._bulk = BulkMoves(stores, transfer)
        self._strays = Strays(transfer, clock)
        self.cohorts = CohortRecords(transfer, clock)
        self._knows_bulk = False
        """Whether the records of the current pass are moved in bulk."""
        self._steering = steering
        self._leases = leases
        self._holder = holder
        self._clock = clock
        self._rate = Rate(clock)
        self.progress = Handover()
        self.buckets_at_b: int | None = None
        """Number of buckets that A does not own and in which it owns no record; None while unknown."""
        self.buckets_to_b = 0
        self.at_home: Sequence[Store | None] = (None,) * BUCKETS
        """Home of each bucket, if the bucket and all its records are there; None if not, or unknown."""
        self.on_their_way = 0
        """Records that no store owned at the last look, approximately. Most arrive within milliseconds."""
        self.states: Sequence[BucketState] = ()
        """State of each bucket; empty while unknown. For an unreachable store, the last one."""
        self._looked_at: float | None = None
        self._settled_for: Aim | None = None
        self._leased_until = 0.0
        self._moves = Move()
        """Moves of the pass that runs, or ran last."""
        self.measured_rate = 0.0
        """Records per second of the last pass that moved something."""

    @property
    def states_age_seconds(self) -> float | None:
        """Time since both stores reported their buckets; None while they have not."""
        return None if self._looked_at is None else self._clock.monotonic() - self._looked_at

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
        await self._strays.bring_home()
        try:
            moved = bool(away) and await self._pass(away)
        finally:
            # If a store fails some of its calls, most passes end early. After one that moved records, go on at once.
            if away and self._has_moved:
                loop.well()
        loop.well()
        if not away:
            self.progress = replace(self.progress, running=False, note="every bucket is at its target")
            await self._steering.changed(setting, IDLE_SECONDS)
        elif not moved:
            await self._steering.changed(setting, STUCK_SECONDS)

    async def _look(self) -> Mapping[int, Bucket]:
        """Read all buckets from both stores. If that fails, they do not count as settled."""
        try:
            return await self._ask_both()
        except BatonError:
            self._settled_for = None
            await self._look_at_one()
            raise

    async def _look_at_one(self) -> None:
        """Update the owners of buckets from each store that answers, while the other one does not."""
        for store in Store if self.states else ():
            try:
                reported = {one.bucket: one for one in await self._transfer.bucket_owners(store)}
            except BatonError:
                continue
            self.states = tuple(
                _reported(state, store, reported[number]) if number in reported else state
                for number, state in enumerate(self.states)
            )

    async def _ask_both(self) -> Mapping[int, Bucket]:
        buckets = {number: Bucket(number, None) for number in range(BUCKETS)}
        for store, client in self._stores.items():
            for bucket_owner in await self._transfer.bucket_owners(store):
                bucket = buckets[bucket_owner.bucket]
                bucket.term = max(bucket.term, bucket_owner.term)
                if bucket_owner.owner == STORE_NUMBERS[store]:
                    bucket.bucket_owner = store
            request = pb.DigestBucketsRequest(counts_only=True)
            counts = await client.ask(client.replication.DigestBuckets, request, BULK_SECONDS)
            for counted in counts.buckets:
                buckets[counted.bucket].owned[store] = counted.owned
                buckets[counted.bucket].rows[store] = counted.records
        setting, flags = self._steering.current, self._steering.lasting_flags
        owned = {number: bucket.owned for number, bucket in buckets.items()}
        for number, apart in (await self.cohorts.apart(setting, flags, owned)).items():
            buckets[number].apart = apart
        return buckets

    def _judge(self, buckets: Mapping[int, Bucket]) -> Sequence[Bucket]:
        """Update the status, and return the buckets that are not at home."""
        setting, flags = self._steering.current, self._steering.lasting_flags
        homes = {number: home(setting, flags, number) for number in buckets}
        away = [bucket for number, bucket in buckets.items() if not bucket.is_home(homes[number])]
        at_home = tuple(homes[number] if bucket.is_at(homes[number]) else None for number, bucket in buckets.items())
        if at_home != self.at_home:
            self.at_home = at_home
        self.states = tuple(
            BucketState(
                bucket.bucket_owner,
                homes[number],
                bucket.is_at(homes[number]),
                number in setting.rehearsal,
                bucket.term > 0 and bucket.bucket_owner is seizer_of(bucket.term),
            )
            for number, bucket in buckets.items()
        )
        self._looked_at = self._clock.monotonic()
        self.buckets_at_b = sum(bucket.is_at(Store.B) for bucket in buckets.values())
        self.buckets_to_b = sum(store is Store.B for store in homes.values())
        on_their_way = {number: bucket.on_their_way for number, bucket in buckets.items()}
        self.on_their_way = sum(max(count, 0) for count in on_their_way.values())
        self._strays.look(on_their_way)
        self._settled_for = None if away or self._strays.due else aim(setting, flags)
        return away

    async def _pass(self, away: Sequence[Bucket]) -> bool:
        """Move these buckets. Returns whether any moved, or the target changed."""
        setting, flags = self._steering.current, self._steering.lasting_flags
        wanted = aim(setting, flags)
        homes = {bucket.number: home(setting, flags, bucket.number) for bucket in away}
        total = sum(bucket.to_move(homes[bucket.number]) for bucket in away)
        self.progress = Handover(running=True, total=total, note=f"moving {len(away)} buckets")
        self._leased_until = self._clock.monotonic() + LEASE_SECONDS / 2
        self._knows_bulk = total > 0 and await self._bulk.is_known()
        left = iter(groups(away, homes))
        self._moves = Move()
        await all_or_none([self._work(left, wanted) for _ in range(WORKERS)])
        if self.progress.rate:
            self.measured_rate = self.progress.rate
        self.progress = replace(self.progress, running=False, note=self._kept_note() or self.progress.note)
        return self._has_moved or self._aim() != wanted

    @property
    def _has_moved(self) -> bool:
        """Whether the current or last pass moved buckets or records."""
        return self._moves.arrived > 0 or self.progress.done > 0

    def _kept_note(self) -> str:
        """The reason for the first bucket or record that cannot move; "" if all can."""
        if kept := self._moves.kept:
            first = min(kept)
            more = f" (and {len(kept) - 1} more)" if len(kept) > 1 else ""
            return f"bucket {first}{more} cannot move: {kept[first]}"
        if large := sorted(self._transfer.too_large):
            more = f" (and {len(large) - 1} more)" if len(large) > 1 else ""
            return f"{large[0]}{more} cannot move: it exceeds the size of an event, make it smaller or delete it"
        return ""

    async def _work(self, groups: Iterator[Group], wanted: Aim) -> None:
        """Move one group after the other until there are no more, or the aim changes."""
        for group in groups:
            if self._aim() != wanted:
                return
            await self._keep_lease()
            buckets, to = group
            left = await self._move(buckets, to, wanted)
            self._arrived({bucket.number for bucket in buckets} - left, to)
            if self.buckets_at_b is not None:
                gone = len(buckets) - len(left)
                self.buckets_at_b += gone if to is Store.B else -sum(b.is_at(Store.B) for b in buckets)

    def _arrived(self, numbers: set[int], to: Store) -> None:
        self.states = tuple(
            state._replace(owner=to, arrived=state.target is to) if number in numbers else state
            for number, state in enumerate(self.states)
        )

    async def _keep_lease(self) -> None:
        now = self._clock.monotonic()
        if now > self._leased_until:
            # Set before the call, so that the other groups do not renew the lease too.
            self._leased_until = now + LEASE_SECONDS / 2
            await self._leases.lease(LEASE_NAME, self._holder, LEASE_SECONDS)

    async def _move(self, group: Sequence[Bucket], to: Store, wanted: Aim) -> set[int]:
        """Hand over the buckets' ownership, after which the target creates new records, then their records.

        Returns the buckets that cannot move or have records left at the source.
        """
        moves: list[Move] = []
        if owned := [bucket.number for bucket in group if bucket.bucket_owner is to.other]:
            level = {bucket.number for bucket in group if bucket.is_level}
            moves.append(await self._bucket_owners.move(owned, to, level))
        if under_way := [bucket.number for bucket in group if bucket.bucket_owner is None]:
            moves.append(await self._bucket_owners.finish(under_way))
        for move in moves:
            self._moves.add(move)
        numbers = [bucket.number for bucket in group]
        whole = [bucket.number for bucket in group if not bucket.apart[to.other]]
        if self._knows_bulk and whole:
            await self._move_in_bulk(whole, to, wanted)
        # One by one: records that were busy, that were created meanwhile, that cannot leave, or beside those that stay.
        setting, flags, apart = self._steering.current, self._steering.lasting_flags, [one.apart for one in group]
        keys = await self._transfer.keys(to.other, numbers, owned_only=True)
        keys = [key for key in keys if not stays(setting, flags, key, to, apart)]
        left = await self._move_some(keys, to, wanted)
        left += await self._move_some([key for one in apart for key in sorted(one[to])], to.other, wanted)
        return {bucket_of(key) for key in left}.union(*(move.kept for move in moves))

    async def _move_some(self, keys: Sequence[str], to: Store, wanted: Aim) -> list[str]:
        """Move records until the aim changes. Returns the keys of those that are left."""
        left: list[str] = []
        for start in range(0, len(keys), BATCH):
            if self._aim() != wanted:
                left += keys[start:]
                break
            left += await self._move_records(keys[start : start + BATCH], to)
        return left

    async def _move_in_bulk(self, buckets: Sequence[int], to: Store, wanted: Aim) -> None:
        async with aclosing(self._bulk.move(buckets, to)) as steps:
            async for step in steps:
                self._moved(step.moved)
                await self._keep_lease()
                if self._aim() != wanted:
                    return

    def _moved(self, count: int) -> None:
        self._rate.add(count)
        self.progress = replace(self.progress, done=self.progress.done + count, rate=self._rate.per_second)

    async def _move_records(self, keys: Sequence[str], to: Store) -> Sequence[str]:
        """Move these records. Returns the keys of busy ones."""
        left = keys
        for _ in range(BUSY_ROUNDS):
            failed = await self._transfer.take(left, to)
            self._moved(len(left) - len(failed))
            left = failed
            if not left:
                break
        return left

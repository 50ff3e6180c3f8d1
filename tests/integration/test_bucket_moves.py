"""A bucket that moves always ends with an owner: when its target refuses it, and when routers stop half way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from libs.clock import SystemClock
from libs.ownership.limits import MAX_COPY_BYTES
from libs.ownership.model import BUCKETS, BucketOwner, Record, Row, Store, Version, bucket_of
from libs.pb.baton.record.v1 import record_pb2
from libs.store.engine_recovery import conflict_of
from libs.store.recovery import Why
from libs.tasks import Loop
from services.router.core.phase import Phase
from services.router.flows.jobs.backfill import Backfill
from services.router.flows.jobs.kind import Position, Step
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.stores import Away
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step

A, B = Store.A, Store.B
KEY = "shelf/r/1"
BUCKET = bucket_of(KEY)
BY_HAND = Decision("ann", "by hand", override=True)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


async def put(system: System, isbn: str = "1") -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


def note_conflict(system: System, store: Store, key: str = KEY) -> Version:
    """Leave a conflict behind, as a seizure does."""
    row = Row(key, Version(0, 7), store.other, Version(0, 7), live=True, payload=b"", schema_version=1)
    journal = system.ports(store)._state.metadata.journal
    journal[key, row.version] = conflict_of(Record(row, (), store.other, 0.0), Why.LATE)
    return row.version


async def owners(system: System) -> dict[int, list[Store]]:
    """Stores that would accept a create, by bucket."""
    found: dict[int, list[Store]] = {bucket: [] for bucket in range(BUCKETS)}
    for store in Store:
        for bucket_owner in await system.ports(store).transfers.bucket_owners():
            if bucket_owner.owner is store:
                found[bucket_owner.bucket].append(store)
    return found


async def assert_one_owner(system: System) -> None:
    """Check every bucket and every record."""
    assert {bucket: len(stores) for bucket, stores in (await owners(system)).items() if len(stores) != 1} == {}
    rows = {store: system.ports(store)._state.visible_rows() for store in Store}
    for key in {key for there in rows.values() for key in there}:
        owning = [store for store in Store if key in rows[store] and rows[store][key].owner is store]
        assert len(owning) == 1, (key, rows)


class _Meanwhile(Transfer):
    """Runs another action between two steps of a move."""

    def __init__(self, system: System) -> None:
        super().__init__(system.stores)
        self.system = system


class _ConflictComes(_Meanwhile):
    """After the target was asked, and before it adopts, a conflict of the bucket reaches its journal."""

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        released = await super().release_buckets(buckets, to)
        note_conflict(self.system, to)
        return released


async def test_a_bucket_with_a_conflict_at_the_target_is_not_released(system: System) -> None:
    note_conflict(system, B)
    before = await system.ports(A).transfers.bucket_owners([BUCKET])
    move = await BucketMoves(Transfer(system.stores)).move([BUCKET, BUCKET + 1], B)
    assert await system.ports(A).transfers.bucket_owners([BUCKET]) == before
    assert "store B has open conflicts" in move.kept[BUCKET] and move.arrived == 1
    assert (await owners(system))[BUCKET + 1] == [B]
    await assert_one_owner(system)


async def test_a_bucket_with_a_conflict_at_its_source_stays_and_says_why(system: System) -> None:
    note_conflict(system, A)
    move = await BucketMoves(Transfer(system.stores)).move([BUCKET], B)
    assert "store A has open conflicts" in move.kept[BUCKET]
    assert (await owners(system))[BUCKET] == [A]


async def test_a_conflict_that_comes_while_a_bucket_moves_sends_it_back(system: System) -> None:
    await put(system)
    move = await BucketMoves(_ConflictComes(system)).move([BUCKET], B)
    (a,), (b,) = [await system.ports(store).transfers.bucket_owners([BUCKET]) for store in Store]
    assert a == b == BucketOwner(BUCKET, 0, 3, A)
    assert "store B has open conflicts" in move.kept[BUCKET] and move.arrived == 0
    await assert_one_owner(system)
    await put(system, "2")


async def test_a_bucket_without_an_owner_gets_one_at_the_next_create(system: System) -> None:
    """As earlier programs left it: the target refuses the bucket, the source has released it."""
    note_conflict(system, B)
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    assert (await owners(system))[BUCKET] == []
    await put(system)
    assert (await owners(system))[BUCKET] == [A]


async def test_a_bucket_with_conflicts_at_both_stores_has_an_owner_in_the_end(system: System) -> None:
    await put(system)
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    for store in Store:
        note_conflict(system, store)
    await BucketMoves(Transfer(system.stores)).finish([BUCKET])
    await assert_one_owner(system)


class _Dies(Transfer):
    """The router ends when the target has declined."""

    async def return_buckets(
        self, bucket_owners: Sequence[record_pb2.BucketOwner], by: Store
    ) -> Sequence[record_pb2.BucketOwner]:
        await super().return_buckets(bucket_owners, by)
        raise KeyboardInterrupt


async def test_another_router_finishes_what_was_declined_with_the_records_of_both(system: System) -> None:
    """With conflicts in both journals the releaser declines in its turn; B must have the record before it adopts."""
    await put(system)
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    for store in Store:
        note_conflict(system, store)
    with pytest.raises(KeyboardInterrupt):
        await BucketMoves(_Dies(system.stores)).finish([BUCKET])
    assert (await owners(system))[BUCKET] == []
    await BucketMoves(Transfer(system.stores)).finish([BUCKET])
    assert (await owners(system))[BUCKET] == [B]
    found = await system.ports(B).records.read(KEY)
    assert found.row is not None and found.owner is A


def mover_of(system: System, transfer: Transfer) -> Mover:
    return Mover(system.stores, transfer, system.setting, system.control, "router-1", SystemClock())


async def passes(mover: Mover, number: int) -> None:
    loop = Loop("mover", mover.run_once)
    for _ in range(number):
        await mover.run_once(loop)


async def advance_to(system: System, phase: Phase) -> None:
    while system.setting.current.phase is not phase:
        await step(system.migration, BY_HAND)


async def test_the_mover_moves_the_other_buckets_and_says_why_one_stays(system: System) -> None:
    await put(system)
    note_conflict(system, B)
    await advance_to(system, Phase.CUTOVER)
    mover = mover_of(system, Transfer(system.stores))
    await passes(mover, 1)
    assert f"bucket {BUCKET} cannot move: store B has open conflicts" in mover.progress.note
    await passes(mover, 1)
    assert (mover.buckets_at_b, mover.settled) == (BUCKETS - 1, False)
    await assert_one_owner(system)
    assert await system.ports(B).seizures.resolve(KEY, Version(0, 7), "done by hand")
    await passes(mover, 2)
    assert mover.settled and mover.buckets_at_b == BUCKETS
    await assert_one_owner(system)


async def test_a_rollback_to_off_brings_a_bucket_home_that_its_target_refuses(system: System) -> None:
    await put(system)
    await advance_to(system, Phase.CUTOVER)
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    note_conflict(system, B)
    await system.migration.rollback(BY_HAND, Phase.OFF)
    mover = mover_of(system, Transfer(system.stores))
    await passes(mover, 3)
    assert set(map(tuple, (await owners(system)).values())) == {(A,)}
    assert mover.settled
    await assert_one_owner(system)


async def test_a_record_that_is_too_large_to_copy_keeps_its_bucket_and_no_other(system: System) -> None:
    """Only an old program can have left such a record."""
    await put(system, "1")
    await put(system, "2")
    state = system.ports(A)._state
    payload = b"x" * (MAX_COPY_BYTES + 1)
    state.rows[KEY] = replace(state.rows[KEY], payload=payload)
    await advance_to(system, Phase.CUTOVER)
    mover = mover_of(system, Transfer(system.stores))
    await passes(mover, 2)
    found = await owners(system)
    assert (found[BUCKET], found[bucket_of("shelf/r/2")]) == ([A], [B])
    assert mover.buckets_at_b == BUCKETS - 1
    assert f"{KEY} has {len(payload)} bytes" in mover.progress.note
    await assert_one_owner(system)


class _BusyCopy(_Meanwhile):
    """A record that the source has given up cannot be had now."""

    async def take(self, keys: Sequence[str], to: Store) -> list[str]:
        return list(keys)


async def test_a_bucket_is_not_adopted_while_a_record_of_it_has_not_arrived(system: System) -> None:
    """Else the target creates a name that the source owns."""
    await put(system)
    await system.ports(A).transfers.release([KEY], B, create=False)
    await BucketMoves(_BusyCopy(system)).move([BUCKET], B)
    assert (await owners(system))[BUCKET] == []
    assert (await system.ports(B).records.read(KEY)).row is None
    await BucketMoves(Transfer(system.stores)).finish([BUCKET])
    assert (await owners(system))[BUCKET] == [B]
    assert (await system.ports(B).records.read(KEY)).owner is B


class _Counted(Transfer):
    """Counts the lists of keys."""

    lists = 0

    async def keys(self, store: Store, buckets: Sequence[int], *, owned_only: bool = False) -> list[str]:
        self.lists += bool(buckets)
        return await super().keys(store, buckets, owned_only=owned_only)


async def test_a_bucket_that_looks_level_is_listed_after_its_release(system: System) -> None:
    """Both stores may have as many rows, and not the same ones."""
    await put(system)
    transfer = _Counted(system.stores)
    await BucketMoves(transfer).move([BUCKET], B, level={BUCKET})
    assert (await owners(system))[BUCKET] == [B]
    found = await system.ports(B).records.read(KEY)
    assert found.row is not None and found.owner is A
    assert transfer.lists == 2


class _ReleasedMeanwhile(_Meanwhile):
    """Another router releases the bucket, after one more create there, before this one sees that it is under way."""

    done = False

    async def bucket_owners(self, store: Store, buckets: Sequence[int] = ()) -> Sequence[record_pb2.BucketOwner]:
        if not self.done:
            self.done = True
            await put(self.system)
            await self.system.ports(A).transfers.release_bucket(BUCKET, B)
        return await super().bucket_owners(store, buckets)


async def test_keys_are_listed_after_the_bucket_was_seen_to_be_released(system: System) -> None:
    await BucketMoves(_ReleasedMeanwhile(system)).finish([BUCKET])
    assert (await owners(system))[BUCKET] == [B]
    found = await system.ports(B).records.read(KEY)
    assert found.row is not None and found.owner is A


async def test_a_write_brings_back_a_record_whose_newest_version_has_not_reached_its_owner(system: System) -> None:
    """B has released it to A, which has an older row that names B: A's first answer is not the newest."""
    await put(system)
    await advance_to(system, Phase.DUAL_READ)
    (to_b,) = (await system.ports(A).transfers.release([KEY], B, create=False)).results
    assert to_b.record is not None
    await system.ports(B).transfers.apply([to_b.record])
    await system.ports(B).transfers.release([KEY], A, create=False)
    before = (await system.ports(B).records.read(KEY)).version
    assert before > (await system.ports(A).records.read(KEY)).version
    order = pb.LendOrder(path=KEY, reader="ann", token=str(uuid4()))
    book = await system.client.multi_callable("/toy.Shelf/Lend")(order.SerializeToString(), timeout=5)
    assert pb.Book.FromString(book).reader == "ann"
    found = await system.ports(B).records.read(KEY)
    assert found.owner is B and found.version == (0, before.revision + 2), "A releases it again, then the write"


async def test_a_store_that_is_away_leaves_the_bucket_under_way(system: System) -> None:
    note_conflict(system, B)
    await system.ports(A).transfers.release_bucket(BUCKET, B)
    await system.stop(B)
    with pytest.raises(Away):
        await BucketMoves(Transfer(system.stores)).finish([BUCKET])


async def test_a_backfill_leaves_a_record_out_that_is_too_large_to_copy_and_names_it(system: System) -> None:
    for isbn in ("1", "2", "3"):
        await put(system, isbn)
    state = system.ports(A)._state
    large = b"x" * (17 * 1024 * 1024)
    state.rows[KEY] = replace(state.rows[KEY], payload=large)
    kind, step = Backfill(system.stores, SystemClock()), Step(b"")
    for _ in range(20):
        step = await kind.step(Position({"to": "B"}, step.checkpoint, limit=1))
        if step.finished:
            break
    assert step.finished and f"1 left out: {KEY} has {len(large)} bytes" in step.note
    assert sorted(system.ports(B)._state.rows) == ["shelf/r/2", "shelf/r/3"]

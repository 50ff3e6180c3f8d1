"""The mover moves many records with one event, and no record stays without an owner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from libs.clock import ManualClock, SystemClock
from libs.eventlog.cloudevents import read_headers
from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import STORE_NUMBERS, read_bulk, record_of_event
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2
from libs.proving.trial.stores import _parsed
from libs.tasks import Loop
from services.router.core.jobs import Job
from services.router.core.phase import Phase
from services.router.flows.feed.relay import BULK_TYPE
from services.router.flows.moving import bulk
from services.router.flows.moving.bulk import SEARCHED_AT_ONCE, STRAY_SECONDS, BulkMoves, Strays
from services.router.flows.moving.mover import Mover
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from services.router.flows.steering.under_way import under_way
from services.router.flows.stores import Refused, StoreView
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step
from tests.waiting import eventually, loop_turns

A, B = Store.A, Store.B
BY_HAND = Decision("ann", "by hand", override=True)
COUNT = 30
KEYS = [f"shelf/r/{number}" for number in range(COUNT)]


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        for number in range(COUNT):
            await put(running, number)
        while running.setting.current.phase is not Phase.CUTOVER:
            await step(running.migration, BY_HAND)
        yield running


async def put(system: System, number: int) -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=str(number)))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def lend(system: System, number: int) -> None:
    order = pb.LendOrder(path=KEYS[number], reader="ann", token=str(uuid4()))
    await system.client.multi_callable("/toy.Shelf/Lend")(order.SerializeToString(), timeout=5)


def mover_of(system: System) -> Mover:
    return Mover(system.stores, Transfer(system.stores), system.setting, system.control, "router-1", SystemClock())


async def moved(system: System) -> Mover:
    mover = mover_of(system)
    for _ in range(2):
        await mover.run_once(Loop("mover", mover.run_once))
    return mover


async def follow(system: System) -> None:
    """B has applied every event of A."""
    entries = await system.ports(A).outbox.pull(1000, 0)
    await system.ports(B).transfers.apply([record_of_event(one.event) for one in entries])


async def owners(system: System) -> list[set[Store]]:
    """Stores that own the record, by key."""
    found = [await system.ports(store).records.read_many(KEYS) for store in Store]
    return [
        {store for store, one in zip(Store, pair, strict=True) if one.owner is store}
        for pair in zip(*found, strict=True)
    ]


async def bulk_events(system: System) -> list[Any]:
    entries = await system.ports(A).outbox.pull(1000, 0)
    return [bulk for one in entries if (bulk := read_bulk(one.key, one.event)) is not None]


async def test_records_whose_target_has_followed_move_in_bulk(system: System) -> None:
    await follow(system)
    mover = await moved(system)
    assert mover.settled and await owners(system) == [{B}] * COUNT
    bulk = await bulk_events(system)
    assert sorted(one.key for each in bulk for one in each.entries) == sorted(KEYS)
    rows = [await system.ports(store).records.read_many(KEYS) for store in Store]
    assert [one.row for one in rows[0]] == [one.row for one in rows[1]]
    events = await system.ports(A).outbox.pull(1000, 0)
    assert len(events) == COUNT + len(bulk), "no record has an event of its own beside that of its write"


async def test_records_whose_target_has_not_followed_are_fetched_whole(system: System) -> None:
    """B has an older row of each, so it must not become the owner of that one."""
    await follow(system)
    a = system.stores[A]
    for number in range(COUNT):
        order = pb.LendOrder(path=KEYS[number], reader="ann", token=str(uuid4()))
        await a.call("/toy.Shelf/Lend", order.SerializeToString(), 5.0)
    mover = await moved(system)
    assert mover.settled and await owners(system) == [{B}] * COUNT
    found = [await system.ports(store).records.read_many(KEYS) for store in Store]
    assert [one.row for one in found[0]] == [one.row for one in found[1]]
    assert {one.version.revision for one in found[1]} == {3}, "two writes and the release"


async def test_a_store_that_does_not_know_bulk_releases_gets_its_records_whole(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await follow(system)

    async def unknown(self: BulkMoves) -> bool:
        return False

    monkeypatch.setattr(BulkMoves, "is_known", unknown)
    mover = await moved(system)
    assert mover.settled and await owners(system) == [{B}] * COUNT
    assert await bulk_events(system) == []


async def test_both_stores_say_that_they_know_bulk_releases(system: System) -> None:
    assert await BulkMoves(system.stores, Transfer(system.stores)).is_known()


async def test_a_release_whose_answer_was_lost_gets_home_by_the_log() -> None:
    async with running_system(mover=False) as system:
        for number in range(COUNT):
            await put(system, number)
        buckets = sorted({bucket_of(key) for key in KEYS})
        await system.ports(A).transfers.release_bulk(buckets, B)

        async def home() -> bool:
            return await owners(system) == [{B}] * COUNT

        await eventually(home)
        assert (await system.ports(B).feed.state()).parked == 0
        async with system.log.reader(dict.fromkeys(range(16), 0)) as reader:
            stored = await reader.poll(1000, 0.01)
        bulk = [one.event for one in stored if one.event.key and read_headers(one.event.headers).type == BULK_TYPE]
        assert len(bulk) == 1
        # The trials' ledger sees an event of each record.
        assert sorted(one.name for one in _parsed(bulk[0].value, "here")) == sorted(KEYS)


async def released_into_nowhere(system: System) -> None:
    """The router that released these records ended before it could tell B, and the log is away."""
    await follow(system)
    await moved_buckets(system)
    await system.ports(A).transfers.release_bulk(sorted({bucket_of(key) for key in KEYS}), B)
    assert await owners(system) == [set()] * COUNT


async def moved_buckets(system: System) -> None:
    mover = mover_of(system)
    for bucket in sorted({bucket_of(key) for key in KEYS}):
        await mover._bucket_owners.move([bucket], B)


async def test_records_that_no_store_owns_are_brought_home_without_the_log(system: System) -> None:
    await released_into_nowhere(system)
    clock = ManualClock()
    mover = Mover(system.stores, Transfer(system.stores), system.setting, system.control, "router-1", clock)
    loop = Loop("mover", mover.run_once)
    await mover.run_once(loop)
    await mover.run_once(loop)
    assert await owners(system) == [set()] * COUNT, "at first a handoff may be under way"
    clock.advance(STRAY_SECONDS)
    await mover._ask_both()
    mover._judge(await mover._look())
    assert not mover.settled, "records without an owner are not settled"
    await mover.run_once(loop)
    assert await owners(system) == [{B}] * COUNT
    await mover.run_once(loop)
    assert mover.settled


class NoJobs:
    view: Sequence[Job] = ()
    trouble = ""


class Serving:
    """Both stores serve."""

    def view(self, store: Store) -> StoreView:
        return StoreView(store, replication_pb2.GetStatusResponse(serving=True), trouble="")


async def test_the_last_step_is_closed_while_records_are_on_their_way(system: System) -> None:
    """A owns nothing and its outbox may be empty, yet B needs the releases of A."""
    await released_into_nowhere(system)
    mover = await moved(system)
    assert mover.settled, "every bucket is at its home, and most records arrive at once"
    assert under_way(NoJobs(), mover, Serving()) == (f"{COUNT} records are on their way",)
    for number in range(COUNT):
        await lend(system, number)
    await mover.run_once(Loop("mover", mover.run_once))
    assert under_way(NoJobs(), mover, Serving()) == ()


async def test_a_call_brings_its_record_home_at_once(system: System) -> None:
    await released_into_nowhere(system)
    await lend(system, 0)
    assert (await owners(system))[0] == {B}


async def test_a_bucket_whose_records_all_have_owners_is_not_searched(system: System) -> None:
    strays = Strays(Transfer(system.stores), clock := ManualClock())
    strays.look({1: 1, 2: 0})
    clock.advance(STRAY_SECONDS)
    strays.look({1: 0, 2: 1})
    assert strays.due == []
    clock.advance(STRAY_SECONDS)
    strays.look({2: 1})
    assert strays.due == [2]
    assert await strays.bring_home() == 0
    assert strays.due == []


class ManyRows(Transfer):
    """A transfer between stores with many records, each released to B."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []
        self.taken: list[str] = []

    async def envelopes(self, store: Store, buckets: Sequence[int]) -> list[record_pb2.Record]:
        self.asked.append(buckets)
        version = record_pb2.Version(revision=2 if store is A else 1)
        owner = STORE_NUMBERS[store.other]
        keys = [f"{bucket}/{number}" for bucket in buckets for number in range(2 * SEARCHED_AT_ONCE)]
        return [record_pb2.Record(key=key, version=version, owner=owner) for key in keys]

    async def take(self, keys: Sequence[str], to: Store) -> list[str]:
        assert to is B
        self.taken += keys
        return []


async def test_a_search_for_records_on_their_way_holds_one_bucket_and_lets_the_router_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transfer, clock = ManyRows(), ManualClock()
    strays = Strays(transfer, clock)
    for _ in range(2):
        strays.look({1: 1, 2: 1})
        clock.advance(STRAY_SECONDS)
    seen: list[int] = []
    async with loop_turns() as turns:
        compare = bulk._on_its_way

        def compared(at_a: record_pb2.Record | None, at_b: record_pb2.Record | None) -> Store | None:
            seen.append(turns())
            return compare(at_a, at_b)

        monkeypatch.setattr(bulk, "_on_its_way", compared)
        assert await strays.bring_home() == len(transfer.taken) == 4 * SEARCHED_AT_ONCE
    assert transfer.asked == [[1], [1], [2], [2]]
    assert max(seen.count(turn) for turn in seen) == SEARCHED_AT_ONCE


async def test_a_bulk_release_to_the_wrong_store_is_refused(system: System) -> None:
    await follow(system)
    done = await system.ports(A).transfers.release_bulk(sorted({bucket_of(key) for key in KEYS}), B)
    a = system.stores[A]
    for event in (done.event, b"", b"\xff"):
        request = replication_pb2.AdoptBulkRequest(event=event)
        with pytest.raises(Refused, match="a bulk release to this store"):
            await a.ask(a.replication.AdoptBulk, request, 5.0)
    unordered = replication_pb2.ReleaseBulkRequest(buckets=[2, 1], to=STORE_NUMBERS[B])
    with pytest.raises(Refused, match="rising numbers"):
        await a.ask(a.replication.ReleaseBulk, unordered, 5.0)

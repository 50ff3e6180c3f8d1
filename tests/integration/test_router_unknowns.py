"""State that a router must keep: served requests of a record, and attempts that it has given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import grpc
import pytest

from libs.contract.pages import Page
from libs.errors import Overloaded
from libs.ownership.model import Answered, Call, Changed, Decide, Found, Store, bucket_of
from libs.pb.baton.record.v1 import record_pb2
from libs.rpc.errors import reason_of
from libs.store.inspection import ExportQuery
from libs.store.port import Listed, Records
from services.router.core.phase import Phase
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import Decision
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step

KEY = "shelf/r/1"


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


async def put(system: System) -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn="1"))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def lend(system: System, reader: str, token: str) -> pb.Book:
    order = pb.LendOrder(path=KEY, reader=reader, token=token)
    return pb.Book.FromString(
        await system.client.multi_callable("/toy.Shelf/Lend")(order.SerializeToString(), timeout=5)
    )


async def writes_go_to_b(system: System) -> None:
    while system.setting.current.phase is not Phase.DUAL_READ:
        await step(system.migration, Decision("a test", "because", override=True))


async def test_a_record_given_up_before_its_bucket_owner_moves_arrives_with_the_requests_it_served(
    system: System,
) -> None:
    token = str(uuid4())
    await put(system)
    first = await lend(system, "ann", token)
    await system.ports(Store.A).transfers.release([KEY], Store.B, create=False)
    await BucketMoves(Transfer(system.stores)).move([bucket_of(KEY)], Store.B)
    row = (await system.ports(Store.B).records.read(KEY)).row
    assert row is not None and row.owner is Store.B, "the move has brought the record to its new owner"
    await writes_go_to_b(system)
    assert await lend(system, "ann", token) == first
    assert (await system.ports(Store.B).records.read(KEY)).row == row, "the retry has had no second effect"


class _MadeMeanwhile(Transfer):
    """Another caller makes a record between the copy ahead and the release of the bucket owner."""

    def __init__(self, system: System) -> None:
        super().__init__(system.stores)
        self._system = system

    async def release_buckets(self, buckets: Sequence[int], to: Store) -> Sequence[record_pb2.BucketOwner]:
        await put(self._system)
        return await super().release_buckets(buckets, to)


async def test_a_record_made_while_its_bucket_owner_moves_is_at_the_target_before_that_may_create(
    system: System,
) -> None:
    move = await BucketMoves(_MadeMeanwhile(system)).move([bucket_of(KEY)], Store.B)
    found = await system.ports(Store.B).records.read(KEY)
    assert found.bucket_owner.owner is Store.B
    assert found.row is not None and found.row.owner is Store.A, "copied, and A's still"
    assert move.arrived == 1


async def test_a_refusal_after_an_attempt_that_was_given_up_leaves_the_outcome_unknown(system: System) -> None:
    await writes_go_to_b(system)
    await system.stop(Store.B)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lend(system, "ann", str(uuid4()))
    assert reason_of(refused.value)[0] == "OWNER_UNAVAILABLE", "A has no such book, but B may still carry it out"


class _BusyAtSecondRead:
    """A store's calls: the second read finds no connection."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._reads = 0

    async def read(self, key: str) -> Found:
        self._reads += 1
        if self._reads == 2:
            raise Overloaded
        return await self._records.read(key)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return await self._records.read_many(keys)

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        return await self._records.write(call, decide)

    async def page(self, page: Page) -> list[Listed]:
        return await self._records.page(page)


async def test_a_store_that_cannot_show_its_row_now_is_not_taken_for_one_without_it(system: System) -> None:
    await put(system)
    a, b = system.ports(Store.A), system.ports(Store.B)
    copies, _ = await a.inspection.export(ExportQuery())
    await b.transfers.apply(copies)
    await lend(system, "ann", str(uuid4()))
    await a.transfers.release([KEY], Store.B, create=False)
    a.records = _BusyAtSecondRead(a.records)
    look = system.client.multi_callable("/toy.Shelf/Look")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await look(pb.LookOrder(path=KEY).SerializeToString(), timeout=5)
    assert reason_of(refused.value)[0] == Overloaded.reason, "B's row is older than what was acknowledged"
    book = pb.Book.FromString(await look(pb.LookOrder(path=KEY).SerializeToString(), timeout=5))
    assert book.reader == "ann"

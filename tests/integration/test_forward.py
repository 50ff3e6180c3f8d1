"""One call of a client when a store fails, refuses or stays away in the midst of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest

from libs.contract.pages import Page
from libs.errors import BatonError, Overloaded, OwnerUnavailable, StoreNotReady
from libs.ownership.errors import NotOwner
from libs.ownership.limits import MAX_PAYLOAD_BYTES
from libs.ownership.model import BUCKETS, Answered, Call, Changed, Decide, Found, Store, Version
from libs.rpc import metadata
from libs.rpc.errors import Internal, reason_of
from libs.store.inspection import ExportQuery
from libs.store.port import Listed, Records
from services.router.core.phase import Phase
from services.router.flows.calls.forward import ReadPolicy
from services.router.flows.moving.handoff import Moved
from services.router.flows.steering.migration import Decision
from services.router.flows.traffic import Watch
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step

KEY = "shelf/r/1"
BY_HAND = Decision("a test", "because", override=True)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


class Moody:
    """A store's calls: each of these errors is raised once, in turn (None: that call is served), then no more."""

    def __init__(self, system: System, store: Store, *errors: BatonError | None) -> None:
        self._records: Records = system.ports(store).records
        self.errors = deque(errors)
        self.calls = 0
        system.ports(store).records = self

    def _begin(self) -> None:
        self.calls += 1
        error = self.errors.popleft() if self.errors else None
        if error is not None:
            raise error

    async def read(self, key: str) -> Found:
        self._begin()
        return await self._records.read(key)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return await self._records.read_many(keys)

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        self._begin()
        return await self._records.write(call, decide)

    async def page(self, page: Page) -> list[Listed]:
        self._begin()
        return await self._records.page(page)


async def put(system: System) -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn="1"))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def lend(system: System, path: str = KEY) -> pb.Book:
    order = pb.LendOrder(path=path, reader="ann", token=str(uuid4()))
    call = system.client.multi_callable("/toy.Shelf/Lend")
    return pb.Book.FromString(await call(order.SerializeToString(), timeout=5))


async def look(system: System, path: str = KEY) -> tuple[pb.Book, bool]:
    """And whether the answer is stale."""
    call = system.client.multi_callable("/toy.Shelf/Look")(pb.LookOrder(path=path).SerializeToString(), timeout=5)
    data = await call
    return pb.Book.FromString(data), metadata.STALE in dict(await call.trailing_metadata() or ())


async def browse(system: System) -> None:
    await system.client.multi_callable("/toy.Shelf/Browse")(pb.BrowseOrder().SerializeToString(), timeout=5)


async def writes_go_to_b(system: System) -> None:
    while system.setting.current.phase is not Phase.DUAL_READ:
        await step(system.migration, BY_HAND)


async def test_a_refusal_is_an_answer_and_only_a_fault_is_a_failure(system: System) -> None:
    system.traffic.watch = watch = Watch("all", frozenset(range(BUCKETS)))
    for call in (lend, look):
        with pytest.raises(grpc.aio.AioRpcError):
            await call(system)
    assert (system.traffic.writes[Store.A], system.traffic.reads[Store.A]) == (1, 1)
    assert (watch.calls, watch.errors, system.traffic.failures[Store.A]) == (2, 0, 0)
    await system.stop(Store.A)
    with pytest.raises(grpc.aio.AioRpcError):
        await lend(system)
    assert (watch.calls, watch.errors, system.traffic.failures[Store.A]) == (3, 1, 1)


async def test_a_record_that_another_router_brings_meanwhile_is_met_at_the_target(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(system)
    await writes_go_to_b(system)
    bring = system.handoffs.bring

    async def too_late(key: str, to: Store, denied: NotOwner, *, create: bool, along: bool = False) -> Moved:
        await bring(key, to, denied, create=create)
        return Moved.BUSY

    monkeypatch.setattr(system.handoffs, "bring", too_late)
    assert (await lend(system)).reader == "ann"


@pytest.mark.parametrize("error", [Internal(), StoreNotReady("starting")])
async def test_a_read_that_fails_once_is_answered_by_its_owner(system: System, error: BatonError) -> None:
    await put(system)
    records = Moody(system, Store.A, error)
    assert (await look(system))[1] is False
    assert records.calls == 2


async def test_a_read_that_is_refused_is_not_asked_again(system: System) -> None:
    records = Moody(system, Store.A, Overloaded())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await look(system)
    assert (reason_of(refused.value)[0], records.calls) == (Overloaded.reason, 1)


async def test_a_refusal_by_a_store_that_was_not_ready_at_first_is_the_answer() -> None:
    """It has said that it did not begin."""
    async with running_system(feeds=False, mover=False, patience_seconds=5.0) as system:
        Moody(system, Store.A, StoreNotReady("starting"), StoreNotReady("starting"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lend(system)
        assert reason_of(refused.value)[0] == "NO_SUCH_BOOK"
        assert system.patience.away_since(Store.A, 1e9) == 1e9, "a store that refuses is there"


async def test_without_stale_reads_a_read_waits_as_a_write_does_and_is_never_stale() -> None:
    policy = ReadPolicy(stale_reads=False)
    async with running_system(feeds=False, mover=False, patience_seconds=0.6, policy=policy) as system:
        await put(system)
        copies, _ = await system.ports(Store.A).inspection.export(ExportQuery())
        await system.ports(Store.B).transfers.apply(copies)
        await system.stop(Store.A)
        for call in (look, look, browse):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(system)
            assert reason_of(refused.value)[0] == OwnerUnavailable.reason
        assert system.traffic.stale_reads == 0


async def test_a_read_that_no_store_answers_is_unavailable(system: System) -> None:
    await put(system)
    for store in Store:
        await system.stop(store)
    for call in (look, browse):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(system)
        assert reason_of(refused.value)[0] == OwnerUnavailable.reason
        assert "try again" in (refused.value.details() or "")


async def test_stale_answers_are_counted(system: System) -> None:
    await put(system)
    copies, _ = await system.ports(Store.A).inspection.export(ExportQuery())
    await system.ports(Store.B).transfers.apply(copies)
    await system.stop(Store.A)
    assert (await look(system))[1] is True
    await browse(system)
    assert system.traffic.stale_reads == 2


async def test_a_record_that_its_owner_cannot_give_up_now_stays_there_and_its_bucket_too(system: System) -> None:
    """Only an old program can have left a record larger than an event: it stays busy until it is smaller."""
    await put(system)
    rows = system.ports(Store.A)._state.rows
    rows[KEY] = replace(rows[KEY], payload=b"x" * (MAX_PAYLOAD_BYTES + 1))
    for absent in (True, False):
        denied = NotOwner(Store.A, Version(0, 0), absent=absent)
        assert await system.handoffs.bring(KEY, Store.B, denied, create=False) is Moved.BUSY
    assert (await system.ports(Store.A).records.read(KEY)).owner is Store.A
    assert system.traffic.handoffs == 0


async def test_a_read_of_a_record_on_its_way_back_shows_the_newest_row(system: System) -> None:
    await put(system)
    await writes_go_to_b(system)
    await lend(system)
    await system.ports(Store.B).transfers.release([KEY], Store.A, create=False)
    book, stale = await look(system)
    assert (book.reader, stale) == ("ann", False), "A's row is from before the loan"


async def test_a_read_of_a_record_on_its_way_needs_the_rows_of_both_stores(system: System) -> None:
    """The row of the store that shows none may be the newest: the other row is stale, or no answer."""
    await put(system)
    await system.ports(Store.A).transfers.release([KEY], Store.B, create=False)
    copies, _ = await system.ports(Store.A).inspection.export(ExportQuery())
    await system.ports(Store.B).transfers.apply(copies)
    await system.ports(Store.B).transfers.release([KEY], Store.A, create=False)
    Moody(system, Store.B, None, Internal(), None, Overloaded())
    assert (await look(system))[1] is True
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await look(system)
    assert reason_of(refused.value)[0] == Overloaded.reason

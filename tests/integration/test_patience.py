"""Calls that wait for a store that restarts, and their errors if it does not come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

import grpc
import pytest

from libs.errors import BatonError, OwnerUnavailable, StoreUnavailable
from libs.ownership.errors import OutboxFull
from libs.ownership.model import Answered, Call, Changed, Decide, Store
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.rpc.server import Server, ServerConfig
from services.router.api import proxy
from services.router.core.phase import Phase
from services.router.flows.calls import patience
from services.router.flows.steering.migration import Decision
from services.router.flows.stores import open_store
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.test_short_deadlines import SlowRecords
from tests.system.whole import System, running_system, step
from tests.waiting import eventually

KEY = "shelf/r/1"
BY_HAND = Decision("a test", "because", override=True)
PATIENCE_SECONDS = 4.0


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False, patience_seconds=PATIENCE_SECONDS) as running:
        yield running


@pytest.fixture
async def hasty() -> AsyncIterator[System]:
    """With feeds, and a patience that is soon over."""
    async with running_system(mover=False, patience_seconds=0.6) as running:
        yield running


async def put(system: System, isbn: str = "1") -> None:
    order = pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn))
    await system.client.multi_callable("/toy.Shelf/Put")(order.SerializeToString(), timeout=5)


async def lend(system: System, path: str = KEY, seconds: float = 10.0) -> pb.Book:
    order = pb.LendOrder(path=path, reader="ann", token=str(uuid4()))
    call = system.client.multi_callable("/toy.Shelf/Lend")
    return pb.Book.FromString(await call(order.SerializeToString(), timeout=seconds))


async def look(system: System, path: str = KEY, seconds: float = 10.0) -> tuple[pb.Book, bool]:
    """And whether the answer is stale."""
    call = system.client.multi_callable("/toy.Shelf/Look")(pb.LookOrder(path=path).SerializeToString(), timeout=seconds)
    data = await call
    return pb.Book.FromString(data), metadata.STALE in dict(await call.trailing_metadata() or ())


async def browse(system: System) -> tuple[list[str], bool]:
    call = system.client.multi_callable("/toy.Shelf/Browse")(pb.BrowseOrder().SerializeToString(), timeout=10)
    data = await call
    stale = metadata.STALE in dict(await call.trailing_metadata() or ())
    return [book.path for book in pb.Books.FromString(data).found], stale


def faults(system: System) -> int:
    """Faults of A, as gates and automatic rollback count them."""
    return system.traffic.meter.recent(Store.A, asyncio.get_running_loop().time()).faults


async def waits(system: System, store: Store = Store.A) -> None:
    await eventually(lambda: system.traffic.waiting[store] > 0, what="a call waits for the store")


async def test_a_write_waits_for_a_store_that_restarts_and_has_one_effect(system: System) -> None:
    await put(system)
    await system.stop(Store.A)
    write = asyncio.create_task(lend(system))
    await waits(system)
    await system.start(Store.A)
    assert (await write).lent == 2, "created, then lent once"
    assert system.traffic.waiting.total() == 0


async def test_a_read_and_a_list_wait_for_a_store_that_restarts_and_are_not_stale(system: System) -> None:
    await put(system)
    await system.stop(Store.A)
    read, listed = asyncio.create_task(look(system)), asyncio.create_task(browse(system))
    await eventually(lambda: system.traffic.waiting[Store.A] == 2)
    await system.start(Store.A)
    book, stale = await read
    assert (book.path, stale) == (KEY, False)
    assert await listed == ([KEY], False)


async def test_a_write_ends_with_a_reason_when_patience_is_over(hasty: System) -> None:
    await put(hasty)
    await hasty.stop(Store.A)
    began = asyncio.get_running_loop().time()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lend(hasty)
    assert reason_of(refused.value)[0] == OwnerUnavailable.reason
    assert asyncio.get_running_loop().time() - began < 8.0, "long before its caller's deadline"
    assert hasty.traffic.waiting.total() == 0


async def test_a_write_ends_with_a_reason_before_its_callers_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router has a margin for its answer. A wide one here: a busy machine may take longer than the usual margin."""
    seconds = 10.0
    monkeypatch.setattr(proxy, "MARGIN_SECONDS", seconds - 1.0)
    async with running_system(feeds=False, mover=False, patience_seconds=10 * seconds) as system:
        await put(system)
        await system.stop(Store.A)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lend(system, seconds=seconds)
    assert reason_of(refused.value)[0] == OwnerUnavailable.reason


@pytest.mark.parametrize("ask", [look, browse])
async def test_reads_wait_only_in_the_first_seconds_of_an_outage(
    hasty: System, ask: Callable[[System], Awaitable[tuple[object, bool]]]
) -> None:
    await put(hasty)
    await eventually(lambda: KEY in hasty.ports(Store.B)._state.rows, what="B has the replica")
    await hasty.stop(Store.A)
    assert (await ask(hasty))[1]
    clock = asyncio.get_running_loop().time
    since = hasty.patience.away_since(Store.A, clock())
    await eventually(lambda: clock() > since + hasty.patience.seconds)
    waited = False

    async def read() -> bool:
        return (await ask(hasty))[1]

    later = asyncio.create_task(read())
    while not later.done():
        waited = waited or hasty.traffic.waiting[Store.A] > 0
        await asyncio.sleep(0)
    assert (await later, waited) == (True, False)
    await hasty.start(Store.A)

    async def back() -> bool:
        return not (await ask(hasty))[1]

    await eventually(back)
    assert hasty.patience.away_since(Store.A, clock()) > since + hasty.patience.seconds, "the next outage is a new one"


async def test_a_call_for_the_other_store_is_served_while_calls_wait(system: System) -> None:
    await put(system)
    while system.setting.current.phase is not Phase.DUAL_READ:
        await step(system.migration, BY_HAND)
    await put(system, "at-b")
    await system.stop(Store.A)
    write = asyncio.create_task(lend(system))
    await eventually(lambda: system.traffic.waiting.total() > 0)
    assert (await lend(system, "shelf/r/at-b")).reader == "ann"
    assert not write.done()
    await system.start(Store.A)
    assert (await write).reader == "ann"


async def test_a_call_that_waits_counts_as_a_fault_in_each_second(system: System) -> None:
    await put(system)
    await system.stop(Store.A)
    write = asyncio.create_task(lend(system))
    await eventually(lambda: system.traffic.waiting[Store.A] and faults(system) == 1, what="both tries count once")
    await eventually(lambda: faults(system) == 3)
    assert not write.done(), "one at first, one more in each second, and none for the tries in between"
    await system.start(Store.A)
    await write


async def test_a_read_that_waits_counts_as_a_fault_in_each_second(system: System) -> None:
    await put(system)
    await system.stop(Store.A)
    read = asyncio.create_task(look(system))
    await waits(system)
    began, at_first = asyncio.get_running_loop().time(), faults(system)
    await eventually(lambda: faults(system) >= at_first + 2)
    assert asyncio.get_running_loop().time() - began > 1.5, "the tries in between do not count"
    await system.start(Store.A)
    await read


async def test_too_many_calls_that_wait_are_refused(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MOST_CALLS", 2)
    await put(system)
    await system.stop(Store.A)
    held = [asyncio.create_task(lend(system)) for _ in range(2)]
    await eventually(lambda: system.traffic.waiting[Store.A] == 2)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lend(system)
    assert reason_of(refused.value)[0] == "OVERLOADED"
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await look(system)
    assert reason_of(unknown.value)[0] == "NO_SUCH_BOOK", "B answers a read, and has no copy of this one"
    assert await browse(system) == ([], True)
    await system.start(Store.A)
    assert {(await write).lent for write in held} == {2, 3}


async def test_a_refusal_by_one_process_after_another_broke_off_leaves_the_outcome_unknown(system: System) -> None:
    """The second process refuses to create an existing record. The first one may be alive, and create it after a
    deletion."""
    while system.setting.current.phase is not Phase.DUAL_READ:
        await step(system.migration, BY_HAND)
    await put(system)
    backend = system.backends[Store.B]
    second = Server(ServerConfig("127.0.0.1:0", "internal"), backend.services)
    await second.start()
    slow = SlowRecords(backend.ports.records, KEY)
    backend.ports.records = slow
    slow.hold_writes = True
    async with open_store(Store.B, f"{backend.server.address},{second.address}", None) as client:
        system.stores[Store.B] = client
        write = asyncio.create_task(put(system))
        await eventually(lambda: slow.held > 0)
        await (backend.server if backend.server.in_flight else second).drain(0.0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await write
        assert reason_of(refused.value)[0] == OwnerUnavailable.reason
        slow.go_on.set()
    await second.drain(0.0)


async def test_a_refusal_by_a_store_that_was_started_again_is_the_answer(system: System) -> None:
    """The process that broke off is gone: its listener has refused a connection since."""
    await put(system)
    slow = SlowRecords(system.ports(Store.A).records)
    system.ports(Store.A).records = slow
    slow.hold_writes = True
    write = asyncio.create_task(put(system))
    await eventually(lambda: slow.held > 0)
    await system.stop(Store.A)
    await waits(system)
    await system.start(Store.A)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await write
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    slow.go_on.set()


class LostAnswers(SlowRecords):
    """Its first write is committed, and the database's answer lost; later ones fail."""

    lost = False
    later: type[BatonError] = OutboxFull

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        if self.lost:
            raise self.later
        self.lost = True
        await super().write(call, decide)
        raise StoreUnavailable


async def test_a_refusal_after_the_database_was_lost_leaves_the_outcome_unknown(system: System) -> None:
    """OUTBOX_FULL would tell the client that there is no such book."""
    records = system.ports(Store.A).records
    system.ports(Store.A).records = LostAnswers(records)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(system)
    assert reason_of(refused.value)[0] == OwnerUnavailable.reason
    assert (await records.read(KEY)).row is not None


async def test_a_full_queue_after_an_attempt_that_broke_off_leaves_the_outcome_unknown(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MOST_CALLS", 0)
    records = system.ports(Store.A).records
    system.ports(Store.A).records = lost = LostAnswers(records)
    lost.later = StoreUnavailable
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await put(system)
    assert reason_of(refused.value)[0] == OwnerUnavailable.reason
    assert (await records.read(KEY)).row is not None


class Line:
    """Passes bytes on to one address. While `dead`, it takes connections as the kernel does for a process that is
    paused: nothing answers."""

    def __init__(self, target: str) -> None:
        self.dead = False
        self.swallowed = 0
        self._host, _, self._port = target.rpartition(":")
        self._taken: set[asyncio.Task[None]] = set()

    async def cut(self) -> None:
        """All connections."""
        taken = list(self._taken)
        for task in taken:
            task.cancel()
        await asyncio.gather(*taken, return_exceptions=True)

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._take(reader, writer))
        self._taken.add(task)
        task.add_done_callback(self._taken.discard)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dead:
            self.swallowed += 1
            far_reader, far_writer = asyncio.StreamReader(), writer
        else:
            far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            ways = (reader, far_writer), (far_reader, writer)
            await asyncio.gather(*(self._pass(*way) for way in ways if not self.dead))
            await asyncio.Event().wait()
        finally:
            for end in {writer, far_writer}:
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()


async def test_a_refusal_by_a_process_that_stood_still_leaves_the_outcome_unknown(system: System) -> None:
    """The process refuses to create an existing record. It may continue the broken attempt after a deletion."""
    await put(system)
    slow = SlowRecords(system.ports(Store.A).records)
    system.ports(Store.A).records = slow
    slow.hold_writes = True
    line = Line(system.backends[Store.A].server.address)
    listener = await asyncio.start_server(line.take, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with open_store(Store.A, address, None) as client:
        system.stores[Store.A] = client
        write = asyncio.create_task(put(system))
        await eventually(lambda: slow.held > 0)
        line.dead = True
        await line.cut()
        clock = asyncio.get_running_loop().time
        tried = clock() + 1.5
        await eventually(lambda: line.swallowed > 0 and clock() > tried, what="gRPC gives a connection up")
        line.dead = False
        await line.cut()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await write
        assert reason_of(refused.value)[0] == OwnerUnavailable.reason
        slow.go_on.set()
    listener.close()
    await listener.wait_closed()
    await line.cut()

"""A watch at one store's listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from libs.backend.store_watches import FIRST_ROWS, PAGE_ROWS, READS, SLOTS, STEP_BYTES, StoreWatches
from libs.clock import ManualClock
from libs.contract.operations import Watch
from libs.contract.pages import Filter, Page
from libs.contract.schemas import RecordCorrupt
from libs.contract.watches import Step, WatchPosition
from libs.ownership.model import Row, Store
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    DeleteSandboxRequest,
    UndeleteSandboxRequest,
    WatchSandboxesRequest,
    WatchSandboxesResponse,
)
from libs.rpc.errors import reason_of
from libs.sandboxes.columns import sandbox_columns
from libs.store import memory, memory_watch
from libs.store.memory import MemoryStore
from libs.store.port import Listed, Records
from tests.contracts.store_adapters import put, record_of, row_of
from tests.system.store import OneStore, new, refusal, running_store
from tests.waiting import eventually

BOUND_SECONDS = 10.0
KEY = "sandboxes/a"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(Store.A, ManualClock(), sandbox_columns)


@asynccontextmanager
async def steps_of(
    store: MemoryStore, position: WatchPosition | None = None, filter_: Filter | None = None
) -> AsyncIterator[AsyncIterator[Step]]:
    steps = StoreWatches(store, heartbeat_seconds=0.05).steps(Watch(filter_ or Filter()), position)
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            yield steps
    finally:
        await steps.aclose()


async def until_synced(steps: AsyncIterator[Step]) -> list[Step]:
    heard = [await anext(steps)]
    while not heard[-1].synced:
        heard.append(await anext(steps))
    return heard


async def test_a_view_of_many_pages_has_a_place_only_when_it_is_complete(store: MemoryStore) -> None:
    keys = [f"sandboxes/{number:04}" for number in range(2 * PAGE_ROWS)]
    await store.transfers.apply([record_of(row_of(key, (0, 1), Store.B)) for key in keys])
    async with steps_of(store) as steps:
        heard = await until_synced(steps)
    assert [(len(step.items), step.reset, step.synced, step.position is None) for step in heard] == [
        (FIRST_ROWS, True, False, True),
        (PAGE_ROWS, False, False, True),
        (PAGE_ROWS - FIRST_ROWS, False, False, True),
        (0, False, True, False),
    ]


async def test_a_view_goes_on_behind_pages_that_end_without_a_match(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends after so many rows that do not match; the last of them says where it ended, and is not shown."""
    monkeypatch.setattr(memory, "LIST_ROWS", 1)
    keys = [f"sandboxes/{number}" for number in range(5)]
    rows = [row_of(key, (0, 1), Store.B, account="acme" if key == keys[-1] else "other") for key in keys]
    await store.transfers.apply([record_of(row) for row in rows])
    async with steps_of(store, filter_=Filter(equals=(("account", "acme"),))) as steps:
        heard = await until_synced(steps)
    assert [len(step.items) for step in heard] == [1, 0] and keys[-1].encode() in heard[0].items[0]
    assert [step.removed for step in heard if step.removed] == []


async def test_a_record_that_cannot_be_shown_any_more_is_named_as_gone(store: MemoryStore) -> None:
    def item(row: Row) -> bytes:
        if row.version.revision > 1:
            raise RecordCorrupt(row.key)
        return row.payload

    async with aclosing(StoreWatches(store).steps(Watch(Filter(), item), None)) as steps:
        await store.transfers.apply([record_of(row_of(KEY, (0, 1), Store.B))])
        heard = await until_synced(steps)
        assert sum(len(step.items) for step in heard) == 1
        await store.transfers.apply([record_of(row_of(KEY, (0, 2), Store.B))])
        assert [(list(step.items), step.removed) for step in await until_synced(steps)] == [([], [KEY])]


async def test_a_view_of_nothing_begins_all_the_same(store: MemoryStore) -> None:
    async with steps_of(store) as steps:
        assert [(step.reset, step.synced) for step in await until_synced(steps)] == [(True, False), (False, True)]


async def test_what_is_written_while_the_view_is_read_is_shown_after_it(store: MemoryStore) -> None:
    keys = [f"sandboxes/{number:04}" for number in range(2 * PAGE_ROWS)]
    await store.transfers.apply([record_of(row_of(key, (0, 1), Store.B)) for key in keys])
    async with steps_of(store) as steps:
        await anext(steps)
        await put(store, "sandboxes/0000x", "r1", "late")
        await until_synced(steps)
        changed = await anext(steps)
    assert len(changed.items) == 1 and b"sandboxes/0000x" in changed.items[0]


async def test_large_records_come_in_several_answers_and_the_place_with_the_last(store: MemoryStore) -> None:
    async with steps_of(store) as steps:
        (*_, begun) = await until_synced(steps)
        await store.transfers.apply(
            [record_of(row_of(f"sandboxes/{n}", (0, 1), Store.B, padding="480000")) for n in range(10)]
        )
        heard = await until_synced(steps)
    assert [step.position == begun.position for step in heard] == [True] * (len(heard) - 1) + [False]
    assert sum(len(step.items) for step in heard) == 10 and len(heard) > 1
    assert all(len(step.items) <= 1 for step in heard)


async def test_without_a_change_a_newer_place_comes_from_time_to_time(store: MemoryStore) -> None:
    async with steps_of(store) as steps:
        await until_synced(steps)
        beat = await anext(steps)
    assert beat.synced and beat.position is not None and not beat.items and not beat.removed


async def test_a_place_at_the_other_store_or_an_unknown_one_begins_anew(store: MemoryStore) -> None:
    await put(store, KEY, "r1", "one")
    known = WatchPosition(Store.A, await store.watch.now())
    async with steps_of(store, known) as steps:
        assert not (await anext(steps)).reset
    for position in (WatchPosition(Store.B, known.at), WatchPosition(Store.A, "x")):
        async with steps_of(store, position) as steps:
            assert (await anext(steps)).reset


async def test_a_watch_that_fell_too_far_behind_begins_anew(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_watch, "MOST_CHANGED", 3)
    async with steps_of(store) as steps:
        await until_synced(steps)
        await store.transfers.apply([record_of(row_of(f"sandboxes/{n}", (0, 1), Store.B)) for n in range(4)])
        heard = await until_synced(steps)
    assert heard[0].reset and len(heard[0].items) == 4


class Counted:
    """A store's records, which count how many pages are read at once."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.now = self.most = self.pages = 0

    async def page(self, page: Page) -> list[Listed]:
        self.now += 1
        self.pages += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return await self._records.page(page)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


async def test_a_write_that_wakes_many_watches_leaves_calls_their_turn(store: MemoryStore) -> None:
    store.records = counted = Counted(store.records)
    watching = StoreWatches(store)
    steps = [watching.steps(Watch(Filter()), None) for _ in range(3 * READS)]
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*(until_synced(one) for one in steps))
            await put(store, KEY, "r1", "one")
            changed = await asyncio.gather(*(anext(one) for one in steps))
        assert all(len(step.items) == 1 for step in changed)
        assert counted.most == READS
    finally:
        for one in steps:
            await one.aclose()


async def test_watches_that_send_hold_so_many_pages_and_no_more(store: MemoryStore) -> None:
    """A caller that takes no answer keeps its slot; the others wait, and read no rows meanwhile."""
    await put(store, KEY, "r1", "one")
    store.records = counted = Counted(store.records)
    watching = StoreWatches(store)
    steps = [watching.steps(Watch(Filter()), None) for _ in range(SLOTS + 3)]
    firsts = [asyncio.ensure_future(anext(one)) for one in steps]
    try:
        await eventually(lambda: sum(first.done() for first in firsts) >= SLOTS)
        for _ in range(100):
            await asyncio.sleep(0)  # The others run as far as they can.
        assert counted.pages == SLOTS
        sending = [one for one, first in zip(steps, firsts, strict=True) if first.done()]
        for one in sending[:3]:
            await one.aclose()
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*firsts)
        assert counted.pages == SLOTS + 3
    finally:
        for one in steps:
            await one.aclose()


@pytest.mark.parametrize(("padding", "most"), [("480000", 1), ("60000", 3), ("10", PAGE_ROWS)])
async def test_a_step_has_as_many_records_as_fit(store: MemoryStore, padding: str, most: int) -> None:
    keys = [f"sandboxes/{number:04}" for number in range(2 * PAGE_ROWS)]
    await store.transfers.apply([record_of(row_of(key, (0, 1), Store.B, padding=padding)) for key in keys])
    async with steps_of(store) as steps:
        heard = await until_synced(steps)
    assert sum(len(step.items) for step in heard) == len(keys)
    assert max(len(step.items) for step in heard) <= most
    assert all(sum(map(len, step.items)) <= STEP_BYTES for step in heard if len(step.items) > 1)


class Client:
    """Watches at a listener."""

    def __init__(self, stub: Any, **request: Any) -> None:
        self.stream = stub.WatchSandboxes(WatchSandboxesRequest(**request), timeout=BOUND_SECONDS)

    async def next(self) -> WatchSandboxesResponse:
        answer = await self.stream.read()
        assert isinstance(answer, WatchSandboxesResponse)
        return answer

    async def synced(self) -> WatchSandboxesResponse:
        while not (answer := await self.next()).synced:
            pass
        return answer

    async def refused(self) -> tuple[grpc.StatusCode, str]:
        error = await refusal(self._to_the_end())
        return error.code(), reason_of(error)[0]

    async def _to_the_end(self) -> None:
        while await self.stream.read() is not grpc.aio.EOF:
            pass


@pytest.fixture
async def a() -> AsyncIterator[OneStore]:
    async with running_store(Store.A) as running:
        yield running


async def test_deleted_sandboxes_are_named_or_shown_as_asked(a: OneStore) -> None:
    names, shown = Client(a.client), Client(a.client, show_deleted=True)
    for client in (names, shown):
        await client.synced()
    await a.client.CreateSandbox(new("a"))
    for client in (names, shown):
        assert [one.name for one in (await client.next()).sandboxes] == [KEY]
    await a.client.DeleteSandbox(DeleteSandboxRequest(name=KEY))
    assert list((await names.next()).removed) == [KEY]
    assert (await shown.next()).sandboxes[0].HasField("delete_time")
    await a.client.UndeleteSandbox(UndeleteSandboxRequest(name=KEY))
    for client in (names, shown):
        assert (await client.next()).sandboxes[0].revision == 3
        client.stream.cancel()


async def test_a_name_that_never_was_is_in_no_watch(a: OneStore) -> None:
    call: Any = a.client.WatchSandboxes(WatchSandboxesRequest(show_deleted=True))
    async with asyncio.timeout(BOUND_SECONDS):
        while not (await call.read()).synced:
            pass
        await a.client.DeleteSandbox(DeleteSandboxRequest(name="sandboxes/never", allow_missing=True))
        await a.client.CreateSandbox(new("after"))
        seen: list[str] = []
        while "sandboxes/after" not in seen:
            heard = await call.read()
            seen += [*(one.name for one in heard.sandboxes), *heard.removed]
    call.cancel()
    assert seen == ["sandboxes/after"]


async def test_both_listeners_of_a_store_show_the_same(a: OneStore) -> None:
    await a.client.CreateSandbox(new("a"))
    answers = []
    for stub in (a.client, a.router):
        client = Client(stub)
        answers.append((await client.next(), await client.synced()))
        client.stream.cancel()
    assert answers[0] == answers[1]


async def test_a_watch_at_a_public_listener_is_the_routers_when_there_is_one() -> None:
    # A second store stands in for the router.
    async with running_store(Store.B) as behind, running_store(Store.A, router=behind.public.address) as a:
        await a.client.CreateSandbox(new("a"))
        client = Client(a.client)
        assert not (await client.next()).sandboxes
        await behind.store.transfers.apply([record_of(row_of("sandboxes/b", (0, 1), Store.B))])
        await client.synced()
        assert [one.name for one in (await client.next()).sandboxes] == ["sandboxes/b"]
        behind.serving.stop("restarting")
        await behind.store.transfers.apply([record_of(row_of("sandboxes/c", (0, 1), Store.B))])
        assert await client.refused() == (grpc.StatusCode.UNAVAILABLE, "STORE_NOT_READY")


async def test_a_router_that_is_away_is_said_so() -> None:
    async with running_store(Store.A, router="127.0.0.1:1") as a:
        assert await Client(a.client).refused() == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")


async def test_a_store_that_does_not_serve_any_more_ends_its_watches(a: OneStore) -> None:
    client = Client(a.client)
    await client.synced()
    a.serving.stop("gone")
    await a.store.transfers.apply([record_of(row_of(KEY, (0, 1), Store.B))])
    assert await client.refused() == (grpc.StatusCode.UNAVAILABLE, "STORE_NOT_READY")


@pytest.mark.parametrize("request_", [{"resume_token": "x"}, {"filter": "x"}, {"resume_token": "A" * 20_000}])
async def test_a_bad_request_is_refused_by_field(a: OneStore, request_: dict[str, str]) -> None:
    assert await Client(a.client, **request_).refused() == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_token_of_another_filter_is_refused(a: OneStore) -> None:
    client = Client(a.client)
    token = (await client.synced()).resume_token
    client.stream.cancel()
    assert token
    other = Client(a.client, filter='account = "acme"', resume_token=token)
    assert await other.refused() == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")

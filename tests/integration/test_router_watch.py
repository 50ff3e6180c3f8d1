"""Watching through the router, with a contract that shares nothing with sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from libs.clock import ManualClock
from libs.ownership.model import Record, Row, Store, Version
from libs.rpc.errors import reason_of
from libs.store.inspection import ExportQuery
from services.router.core.phase import Phase
from services.router.flows.calls import watch_streams as router_watching
from services.router.flows.calls.watch_streams import WatchCall, WatchStreams
from services.router.flows.steering.migration import Blocked, Decision
from services.router.flows.stores import StoreClient
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.test_short_deadlines import SlowRecords
from tests.shelf import MOST_READER_CHARACTERS
from tests.system.whole import WATCH_PATIENCE_SECONDS, StoreProcess, System, running_system, step
from tests.waiting import eventually

BOUND_SECONDS = 20.0
BY_HAND = Decision("a test", "because", override=True)


class Watcher:
    """A client that keeps the view as its contract tells it to."""

    def __init__(self, system: System, reader: str = "", where: str = "") -> None:
        order = pb.FollowOrder(reader=reader, where=where).SerializeToString()
        self.stream: Any = system.client.stream_callable("/toy.Shelf/Follow")(order)
        self.view: dict[str, pb.Book] = {}
        self.heard: list[pb.News] = []
        self.where = where
        self.error: grpc.aio.AioRpcError | None = None

    @property
    def resets(self) -> int:
        return sum(news.anew for news in self.heard)

    @property
    def synced(self) -> bool:
        return bool(self.heard) and self.heard[-1].all

    async def run(self) -> None:
        try:
            while isinstance(answer := await self.stream.read(), bytes):
                self.take(pb.News.FromString(answer))
        except grpc.aio.AioRpcError as error:
            self.error = error

    def take(self, news: pb.News) -> None:
        self.heard.append(news)
        if news.anew:
            self.view.clear()
        for book in news.books:
            before = self.view.get(book.path)
            assert before is None or before.lent <= book.lent, "no version goes back"
            self.view[book.path] = book
        for path in news.gone:
            self.view.pop(path, None)
        self.where = news.where

    def sees(self, path: str, reader: str) -> bool:
        return path in self.view and self.view[path].reader == reader


@asynccontextmanager
async def watching(system: System, **order: str) -> AsyncIterator[Watcher]:
    watcher = Watcher(system, **order)
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher
    finally:
        watcher.stream.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        failed = None if task.cancelled() else task.exception()
        assert failed is None, failed


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system() as running:
        yield running


async def lend(system: System, path: str, reader: str) -> None:
    order = pb.LendOrder(path=path, reader=reader, buy=True).SerializeToString()
    await system.client.multi_callable("/toy.Shelf/Lend")(order, timeout=BOUND_SECONDS)


def book(path: str, reader: str) -> bytes:
    return pb.Book(path=path, reader=reader, lent=9).SerializeToString()


async def go_to(system: System, phase: Phase) -> None:
    while system.setting.current.phase is not phase:
        await step(system.migration, BY_HAND)


async def lose(backend: StoreProcess, revision: int) -> None:
    """The store ends its watches: it looks whether it serves when it has something to show."""
    backend.serving.stop("starting")
    key, version, other = "shelf/r/0", Version(0, revision), backend.ports.store.other
    row = Row(key, version, other, version, live=True, payload=book(key, ""), schema_version=1)
    await backend.ports.transfers.apply([Record(row, (), other, 0.0)])


def lost(caplog: pytest.LogCaptureFixture, times: int) -> bool:
    return caplog.text.count("a watch has lost store A") == times


def passed(clock: Callable[[], float], until: float) -> bool:
    return clock() > until


def begun_anew(watcher: Watcher, resets: int) -> bool:
    return watcher.resets == resets and watcher.synced


async def without_a_way_back(system: System) -> bool:
    """The router's view of A may be a moment old."""
    try:
        await go_to(system, Phase.DEPRECATED)
    except Blocked:
        return False
    return True


async def all_at_b(system: System) -> None:
    await go_to(system, Phase.DUAL_READ)
    await eventually(lambda: system.mover.settled and system.mover.buckets_at_b == 1024, BOUND_SECONDS)


async def test_a_watch_begins_with_all_there_is_and_goes_on_with_what_changes(system: System) -> None:
    for number in range(120):
        await lend(system, f"shelf/r/{number:03}", "ann")
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        assert len(watcher.view) == 120
        assert watcher.heard[0].anew and watcher.resets == 1
        assert [news.where for news in watcher.heard[:-1]] == [""] * (len(watcher.heard) - 1)
        await lend(system, "shelf/r/007", "bob")
        await eventually(lambda: watcher.sees("shelf/r/007", "bob"), BOUND_SECONDS)
        assert watcher.resets == 1


async def test_what_does_not_match_any_more_is_named(system: System) -> None:
    await lend(system, "shelf/r/1", "ann")
    await lend(system, "shelf/r/2", "bob")
    async with watching(system, reader="ann") as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        assert set(watcher.view) == {"shelf/r/1"}
        await lend(system, "shelf/r/1", "bob")
        await lend(system, "shelf/r/2", "ann")
        await eventually(lambda: set(watcher.view) == {"shelf/r/2"}, BOUND_SECONDS)


async def test_a_token_goes_on_at_the_store_where_it_was_made(system: System) -> None:
    await lend(system, "shelf/r/1", "ann")
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
    await all_at_b(system)
    await lend(system, "shelf/r/2", "ann")
    async with watching(system, where=watcher.where) as again:
        await eventually(lambda: "shelf/r/2" in again.view, BOUND_SECONDS)
        assert set(again.view) == {"shelf/r/2"}, "nothing is shown that was shown before"
        assert again.resets == 0


async def test_neither_phases_nor_handoffs_disturb_a_watch(system: System) -> None:
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        await lend(system, "shelf/r/1", "ann")
        await all_at_b(system)
        await lend(system, "shelf/r/1", "bob")
        await eventually(lambda: watcher.sees("shelf/r/1", "bob"), BOUND_SECONDS)
        assert watcher.resets == 1 and watcher.error is None
        shown = [book.reader for news in watcher.heard for book in news.books]
        assert shown == ["ann", "bob"], "a handoff is no news"


async def test_a_watch_goes_on_at_the_other_store_anew_when_its_own_stays_away(system: System) -> None:
    await lend(system, "shelf/r/1", "ann")
    await all_at_b(system)
    async with watching(system) as watcher:
        await eventually(lambda: watcher.sees("shelf/r/1", "ann"), BOUND_SECONDS)
        await system.stop(Store.A)
        await lend(system, "shelf/r/1", "bob")
        await eventually(lambda: watcher.sees("shelf/r/1", "bob"), BOUND_SECONDS)
        assert watcher.resets == 1, "it is attached to B, where reads go"
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        token = watcher.where
        await system.stop(Store.B)
        await eventually(lambda: watcher.error is not None, BOUND_SECONDS)
        assert watcher.error is not None
        assert watcher.error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(watcher.error)[0] == "OWNER_UNAVAILABLE"
        assert watcher.where == token, "with which the client may come back"


async def test_a_store_that_is_back_soon_is_watched_on_from_where_it_was_lost(system: System) -> None:
    await lend(system, "shelf/r/1", "ann")
    await all_at_b(system)
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        await lend(system, "shelf/r/2", "ann")
        await eventually(lambda: watcher.sees("shelf/r/2", "ann"), BOUND_SECONDS)
        before = len(watcher.heard)
        b = system.backends[Store.B]
        b.serving.stop("starting")
        record = (await b.ports.inspection.export(ExportQuery()))[0][0]
        row = replace(record.row, version=Version(0, 9), write_version=Version(0, 9), payload=book("shelf/r/1", "bob"))
        await b.ports.transfers.apply([replace(record, row=row)])
        await eventually(lambda: b.server.streams == 0, BOUND_SECONDS, "the store ends the watch")
        b.serving.serve()
        await eventually(lambda: watcher.sees("shelf/r/1", "bob"), BOUND_SECONDS)
        assert watcher.resets == 1 and watcher.error is None
        assert [one.path for news in watcher.heard[before:] for one in news.books] == ["shelf/r/1"]


async def test_each_loss_of_a_store_is_waited_for_anew(system: System, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    a, clock = system.backends[Store.A], asyncio.get_running_loop().time
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        for times, reader in ((1, "ann"), (2, "bob")):
            await lose(a, times)
            await eventually(partial(lost, caplog, times), BOUND_SECONDS)
            lost_at = clock()
            a.serving.serve()
            await lend(system, "shelf/r/1", reader)
            await eventually(partial(watcher.sees, "shelf/r/1", reader), BOUND_SECONDS)
            await eventually(partial(passed, clock, lost_at + WATCH_PATIENCE_SECONDS))
        assert watcher.resets == 1
        token = watcher.where
    await lose(a, 3)
    async with watching(system, where=token) as again:
        await eventually(partial(lost, caplog, 3), BOUND_SECONDS)
        a.serving.serve()
        await eventually(lambda: again.synced, BOUND_SECONDS)
        assert again.resets == 0, "also by a client who comes back with a token"


async def test_a_watch_goes_from_store_to_store_as_often_as_one_is_lost(system: System) -> None:
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        for resets, store in ((2, Store.A), (3, Store.B)):
            await lose(system.backends[store], resets)
            await eventually(partial(begun_anew, watcher, resets), BOUND_SECONDS)
            system.backends[store].serving.serve()
        assert watcher.error is None


async def test_a_store_that_says_nothing_is_lost(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_watching, "STILL_SECONDS", 0.3)
    silent = SlowRecords(system.ports(Store.A).records)
    silent.hold_pages = True
    system.ports(Store.A).records = silent
    async with watching(system) as watcher:
        await eventually(lambda: bool(watcher.heard), BOUND_SECONDS)
        assert watcher.heard[0].anew, "B begins the view"


async def test_a_client_who_leaves_leaves_no_watch_at_the_store(system: System) -> None:
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        assert system.backends[Store.A].server.streams == 1
    await eventually(lambda: system.backends[Store.A].server.streams == 0, 2.0)


async def test_a_watch_of_a_dead_store_is_taken_up_by_the_other_one(system: System) -> None:
    await lend(system, "shelf/r/1", "ann")
    await lend(system, "shelf/r/2", "ann")
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        await all_at_b(system)
        await lend(system, "shelf/r/1", "bob")
        await eventually(lambda: watcher.sees("shelf/r/1", "bob"), BOUND_SECONDS)
        await system.stop(Store.A)
        await eventually(lambda: watcher.resets == 2 and watcher.synced, BOUND_SECONDS)
        assert {path: book.reader for path, book in watcher.view.items()} == {"shelf/r/1": "bob", "shelf/r/2": "ann"}
        await lend(system, "shelf/r/2", "bob")
        await eventually(lambda: watcher.sees("shelf/r/2", "bob"), BOUND_SECONDS)


async def test_without_a_way_back_a_watch_leaves_a(system: System) -> None:
    async with watching(system) as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
        await all_at_b(system)
        await go_to(system, Phase.CUTOVER)
        await eventually(lambda: without_a_way_back(system), BOUND_SECONDS)
        await lend(system, "shelf/r/1", "ann")
        await eventually(lambda: watcher.resets == 2 and watcher.sees("shelf/r/1", "ann"), BOUND_SECONDS)


@pytest.mark.parametrize("where", ["x", "%", "A" * 20_000])
async def test_what_is_no_token_is_refused(system: System, where: str) -> None:
    async with watching(system, where=where) as watcher:
        await eventually(lambda: watcher.error is not None, BOUND_SECONDS)
        assert watcher.error is not None
        assert (watcher.error.code(), reason_of(watcher.error)[1]["field"]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "where",
        )


async def test_the_token_of_another_question_is_refused(system: System) -> None:
    async with watching(system, reader="ann") as watcher:
        await eventually(lambda: watcher.synced, BOUND_SECONDS)
    async with watching(system, reader="bob", where=watcher.where) as other:
        await eventually(lambda: other.error is not None, BOUND_SECONDS)
        assert other.error is not None and other.error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_store_refuses_is_refused_at_once_with_its_own_words(system: System) -> None:
    async with watching(system, reader="x" * (MOST_READER_CHARACTERS + 1)) as watcher:
        await eventually(lambda: watcher.error is not None, BOUND_SECONDS)
        assert watcher.error is not None
        assert (watcher.error.code(), reason_of(watcher.error)[1]["field"]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "reader",
        )


async def until_all(answers: AsyncIterator[bytes]) -> None:
    while not pb.News.FromString(await anext(answers)).all:
        pass


async def test_a_lost_store_is_asked_again_after_pauses_that_grow_and_begin_anew_with_each_loss(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pauses, a = ManualClock(), list[float](), system.backends[Store.A]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)
        if len(pauses) == 6:
            a.serving.serve()
        await asyncio.sleep(0)

    monkeypatch.setattr(router_watching, "asyncio", SimpleNamespace(sleep=sleep, timeout=asyncio.timeout))
    watches = WatchStreams(system.stores, system.setting, clock, patience_seconds=60.0)
    call = WatchCall(system.contract.methods["Follow"], pb.FollowOrder(), ())
    async with aclosing(watches.answers(call, Store.A)) as answers:
        await until_all(answers)
        for revision in (1, 2):
            pauses.clear()
            await lose(a, revision)
            await until_all(answers)
            assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


async def test_a_watch_that_ends_ends_its_stream_at_the_store(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when the garbage is collected: here the stream is kept."""
    channel, kept = system.stores[Store.A].channel, list[Any]()

    def stream_callable(path: str) -> Callable[..., Any]:
        def begin(*arguments: Any, **more: Any) -> Any:
            kept.append(channel.stream_callable(path)(*arguments, **more))
            return kept[-1]

        return begin

    a = StoreClient(Store.A, channel, None)
    monkeypatch.setattr(a, "channel", SimpleNamespace(stream_callable=stream_callable))
    watches = WatchStreams({**system.stores, Store.A: a}, system.setting, ManualClock(), patience_seconds=0.0)
    call = WatchCall(system.contract.methods["Follow"], pb.FollowOrder(), ())
    async with aclosing(watches.answers(call, Store.A)) as answers:
        await until_all(answers)
    assert [stream.cancelled() for stream in kept] == [True]

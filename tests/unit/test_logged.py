"""Writes that are answered when their event is in the log, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest

from libs.backend.logged import AWAY_SECONDS, LogWaits
from libs.clock import ManualClock
from libs.errors import NotLogged
from libs.ownership.model import Store, Version
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_pb2
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc import metadata
from libs.rpc.errors import reason_of
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from libs.store.outbox import Outbox
from tests.contracts.store_adapters import put
from tests.system.control import running_loops
from tests.system.store import OneStore, new, refusal, running_store
from tests.waiting import eventually

KEY = "sandboxes/one"
LOGGED = ((metadata.ACK, metadata.LOGGED),)


@asynccontextmanager
async def outbox_with(*keys: str) -> AsyncIterator[tuple[Outbox, list[tuple[str, Version]]]]:
    """One of a store in memory, with one change of each key."""
    store = MemoryStore(Store.A, ManualClock(), sandbox_columns)
    yield store.outbox, [(key, (await put(store, key, f"r-{key}", "w")).version) for key in keys]


async def waiting(waits: LogWaits, name: tuple[str, Version], *, fresh: bool = True) -> asyncio.Task[None]:
    """A wait that has begun."""
    task = asyncio.create_task(waits.wait(name, 10.0, fresh=fresh))
    await eventually(lambda: name[0] in repr(waits) or task.done())
    return task


async def test_a_wait_ends_when_exactly_its_change_is_acknowledged() -> None:
    async with outbox_with(KEY) as (outbox, [name]):
        asked: list[int] = []
        waits = LogWaits(Counted(outbox, asked), 10.0)
        first, second = await waiting(waits, name), await waiting(waits, name)
        waits.acknowledged([("sandboxes/other", name[1]), (KEY, Version(0, 7))])
        await asyncio.sleep(0)
        assert not first.done()
        waits.acknowledged([name])
        await asyncio.gather(first, second)
        assert asked == [], "a write that has just been made is hardly there yet"
        assert repr(waits) == "<LogWaits waiting=[]>"


async def test_who_begins_to_wait_at_the_moment_of_the_acknowledgement_disturbs_nobody() -> None:
    """A retry that has found the change in the outbox just before, and runs on just before the first one does."""
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Slow:
        async def unlogged(self, changes: Any) -> Any:
            await found
            return set() if acknowledged else set(changes)

    acknowledged, name = False, (KEY, Version(0, 1))
    waits = LogWaits(cast(Outbox, Slow()), 10.0)
    first = await waiting(waits, name)
    retry = asyncio.create_task(waits.wait(name, 10.0, fresh=False))
    await asyncio.sleep(0)
    found.set_result(None)
    waits.acknowledged([name])
    await first
    acknowledged = True
    async with running_loops(waits.loop):
        await retry
    assert repr(waits) == "<LogWaits waiting=[]>"


async def test_what_another_process_acknowledges_is_found_by_looking_for_all_at_once() -> None:
    async with outbox_with(KEY, "sandboxes/two", "sandboxes/three") as (outbox, names):
        asked: list[int] = []
        waits = LogWaits(Counted(outbox, asked), 10.0)
        async with running_loops(waits.loop):
            one, two, three = [await waiting(waits, name) for name in names]
            await outbox.ack(names[:2])
            await asyncio.gather(one, two)
            assert not three.done()
            assert 3 in asked
            await outbox.ack(names)
            await three


async def test_a_loop_with_nobody_who_waits_asks_nothing() -> None:
    async with outbox_with(KEY) as (outbox, [name]):
        asked: list[int] = []
        waits = LogWaits(Counted(outbox, asked), 10.0)
        async with running_loops(waits.loop):
            task = await waiting(waits, name)
            await outbox.ack([name])
            await task
            before = len(asked)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(asked) == before


async def test_what_is_in_the_log_already_is_not_waited_for() -> None:
    async with outbox_with(KEY) as (outbox, [name]):
        await outbox.ack([name])
        await LogWaits(outbox, 0.0).wait(name, 0.0, fresh=False)


async def test_a_wait_is_bounded_and_leaves_nothing() -> None:
    async with outbox_with(KEY) as (outbox, [name]):
        waits = LogWaits(outbox, 0.01)
        with pytest.raises(NotLogged):
            await waits.wait(name, 10.0, fresh=True)
        task = await waiting(LogWaits(outbox, 10.0), name)
        task.cancel()
        await asyncio.wait([task])
        assert repr(waits) == "<LogWaits waiting=[]>"


class Counted:
    """An outbox that notes how many names each question has."""

    def __init__(self, outbox: Outbox, asked: list[int]) -> None:
        self._outbox = outbox
        self._asked = asked

    async def unlogged(self, changes: Any) -> Any:
        self._asked.append(len(changes))
        return await self._outbox.unlogged(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)


async def acknowledge(at: OneStore) -> int:
    """Acknowledge like a relay, after it has put everything into the log."""
    pulled = await at.replication.PullChanges(rpb.PullChangesRequest(limit=100, wait_seconds=5.0))
    names = [rpb.AckChangesRequest.Name(key=change.key, version=change.version) for change in pulled.changes]
    answer = await at.replication.AckChanges(rpb.AckChangesRequest(changes=names))
    return answer.acknowledged


class TestAtTheInternalListener:
    async def test_a_write_is_answered_when_its_change_is_acknowledged(self) -> None:
        async with running_store() as at:
            call = asyncio.ensure_future(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            await eventually(lambda: KEY in repr(at.logged))
            assert not call.done()
            assert await acknowledge(at) == 1
            assert (await call).revision == 1

    async def test_a_write_of_a_caller_who_did_not_ask_is_answered_at_once(self) -> None:
        async with running_store() as at:
            assert (await at.router.CreateSandbox(new("one"))).revision == 1

    async def test_a_retry_waits_like_the_first_try_and_has_its_answer(self) -> None:
        async with running_store(log_wait_seconds=0.01) as at:
            request = new("one", request_id=str(uuid4()))
            for _ in range(2):
                refused = await refusal(at.router.CreateSandbox(request, metadata=LOGGED))
                assert refused.code() is grpc.StatusCode.UNAVAILABLE
                assert reason_of(refused)[0] == "NOT_LOGGED"
            assert await acknowledge(at) == 1
            assert (await at.router.CreateSandbox(request, metadata=LOGGED)).revision == 1
            assert await at.store.outbox.pull(10, 0) == []

    async def test_a_caller_with_little_time_is_told_in_time_that_it_is_not_known(self) -> None:
        async with running_store(log_wait_seconds=60.0) as at:
            refused = await refusal(at.router.CreateSandbox(new("one"), metadata=LOGGED, timeout=0.3))
            assert reason_of(refused)[0] == "NOT_LOGGED"

    async def test_a_call_that_only_checks_waits_for_nothing(self) -> None:
        async with running_store(log_wait_seconds=60.0) as at:
            request = new("one")
            request.validate_only = True
            assert (await at.router.CreateSandbox(request, metadata=LOGGED)).name == KEY

    async def test_a_refusal_waits_for_the_change_that_it_shows(self) -> None:
        async with running_store() as at:
            await at.router.CreateSandbox(new("one"))
            call = asyncio.ensure_future(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            await eventually(lambda: KEY in repr(at.logged))
            assert not call.done()
            assert await acknowledge(at) == 1
            assert (await refusal(call)).code() is grpc.StatusCode.ALREADY_EXISTS

    async def test_a_refusal_whose_change_does_not_reach_the_log_in_time_says_so(self) -> None:
        async with running_store(log_wait_seconds=0.01) as at:
            await at.router.CreateSandbox(new("one"))
            refused = await refusal(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            assert reason_of(refused)[0] == "NOT_LOGGED"
            assert "the write was refused for a change" in str(refused.details())

    async def test_a_refusal_that_shows_no_change_waits_for_nothing(self) -> None:
        async with running_store(log_wait_seconds=60.0) as at:
            gone = pb.DeleteSandboxRequest(name=KEY)
            assert (await refusal(at.router.DeleteSandbox(gone, metadata=LOGGED))).code() is grpc.StatusCode.NOT_FOUND

    async def test_a_read_waits_for_nothing(self) -> None:
        async with running_store(log_wait_seconds=60.0) as at:
            await at.router.CreateSandbox(new("one"))
            found = await at.router.GetSandbox(pb.GetSandboxRequest(name=KEY), metadata=LOGGED)
            assert found.name == KEY


async def hear(at: OneStore, trouble: str) -> None:
    """Report trouble like a relay."""
    await at.replication.PullChanges(rpb.PullChangesRequest(limit=1, log_trouble=trouble))


class TestWhileTheLogIsAway:
    async def test_a_write_is_refused_before_anything_is_changed_and_without_a_wait(self) -> None:
        async with running_store(log_wait_seconds=60.0) as at:
            await hear(at, "no broker answers")
            refused = await refusal(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(refused)[0] == "LOG_UNAVAILABLE"
            assert "this attempt changed nothing: no broker answers" in str(refused.details())
            assert (await at.store.records.read(KEY)).row is None
            assert await at.store.outbox.pull(10, 0) == []

    async def test_who_does_not_wait_for_the_log_does_not_hear_of_it(self) -> None:
        async with running_store() as at:
            await hear(at, "no broker answers")
            assert (await at.router.CreateSandbox(new("one"))).revision == 1

    async def test_a_write_that_was_committed_before_is_not_said_to_be_undone(self) -> None:
        async with running_store(log_wait_seconds=0.01) as at:
            request = new("one", request_id=str(uuid4()))
            for trouble in ("", "no broker answers"):
                await hear(at, trouble)
                refused = await refusal(at.router.CreateSandbox(request, metadata=LOGGED))
                assert reason_of(refused)[0] == "NOT_LOGGED"

    async def test_a_request_that_is_wrong_is_still_told_so(self) -> None:
        async with running_store() as at:
            await at.router.CreateSandbox(new("one"))
            await acknowledge(at)
            await hear(at, "no broker answers")
            refused = await refusal(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            assert refused.code() is grpc.StatusCode.ALREADY_EXISTS

    async def test_a_refusal_that_shows_a_change_which_is_not_in_the_log_is_not_given(self) -> None:
        async with running_store() as at:
            await at.router.CreateSandbox(new("one"))
            await hear(at, "no broker answers")
            refused = await refusal(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            assert reason_of(refused)[0] == "LOG_UNAVAILABLE"

    @pytest.mark.parametrize("why", ["the relay says so", "no relay says anything any more"])
    async def test_writes_are_taken_again_when(self, why: str) -> None:
        async with running_store() as at:
            await hear(at, "no broker answers")
            if "relay says so" in why:
                await hear(at, "")
            else:
                at.clock.advance(AWAY_SECONDS)
            call = asyncio.ensure_future(at.router.CreateSandbox(new("one"), metadata=LOGGED))
            await eventually(lambda: KEY in repr(at.logged))
            await acknowledge(at)
            assert (await call).revision == 1


class TestAtThePublicListener:
    async def test_clients_wait_where_the_setting_says_so(self) -> None:
        async with running_store(public_logged=True) as at:
            call = asyncio.ensure_future(at.client.CreateSandbox(new("one")))
            await eventually(lambda: KEY in repr(at.logged))
            assert await acknowledge(at) == 1
            assert (await call).revision == 1

    async def test_clients_cannot_ask_for_it_themselves(self) -> None:
        async with running_store() as at:
            sandbox = await at.client.CreateSandbox(new("one"), metadata=LOGGED)
            assert sandbox == sandbox_pb2.Sandbox.FromString((await at.store.records.read(KEY)).row.payload)  # type: ignore[union-attr]

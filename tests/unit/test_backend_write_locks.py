"""When a store takes a record's lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from libs.backend.write_locks import WriteLocks
from libs.clock import ManualClock
from libs.errors import LockTimeout
from libs.locks.memory import MemoryLocks
from libs.locks.port import Lock, LockState, LocksUnavailable
from libs.ownership.errors import NotOwner
from libs.ownership.model import Answered, Changed, Found, Store
from libs.ownership.rules import decide_write
from libs.sandboxes.columns import sandbox_columns
from libs.store.memory import MemoryStore
from tests.contracts.store_adapters import call_of, own, put, putting, sandbox, word_of
from tests.waiting import eventually

KEY = "sandboxes/one"


@dataclass
class Away:
    """Locks whose server is out of reach."""

    asked: list[str] = field(default_factory=list)
    state: LockState = field(default_factory=lambda: LockState("away"))

    @asynccontextmanager
    async def hold(self, key: str, wait_seconds: float) -> AsyncIterator[Lock]:
        self.asked.append(key)
        raise LocksUnavailable
        yield


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore(Store.B, ManualClock(), sandbox_columns)
    await own(store, [KEY])
    return store


async def write(store: MemoryStore, locks_of_writes: WriteLocks, request: str, word: str) -> Changed | Answered:
    call = call_of(KEY, request)

    def decide(found: Found) -> Changed | Answered:
        return decide_write(found, store.store, call, putting(sandbox(KEY, word)))

    return await locks_of_writes.write(call, decide, under_lock=True)


async def test_a_write_that_needs_the_lock_waits_for_its_holder(store: MemoryStore) -> None:
    locks = MemoryLocks()
    locks_of_writes = WriteLocks(store, locks)
    async with locks.hold(KEY, 0):
        waiting = asyncio.create_task(write(store, locks_of_writes, "r1", "one"))
        await eventually(lambda: "waiting=1" in repr(locks))
        assert (await store.records.read(KEY)).row is None
    assert isinstance(await waiting, Changed)


async def test_without_locks_a_write_that_needs_one_fails_and_changes_nothing(store: MemoryStore) -> None:
    with pytest.raises(LocksUnavailable):
        await write(store, WriteLocks(store, Away()), "r1", "one")
    assert (await store.records.read(KEY)).row is None


async def test_a_request_that_was_served_is_answered_without_a_lock(store: MemoryStore) -> None:
    done = await write(store, WriteLocks(store, MemoryLocks()), "r1", "one")
    away = Away()
    again = await write(store, WriteLocks(store, away), "r1", "one")
    assert (again, away.asked) == (Answered(done.answer, done.version), [])


async def test_a_store_that_does_not_own_the_record_asks_for_no_lock(store: MemoryStore) -> None:
    await put(store, KEY, "r1", "one")
    await store.transfers.release([KEY], Store.A, create=False)
    away = Away()
    with pytest.raises(NotOwner):
        await write(store, WriteLocks(store, away), "r2", "two")
    assert away.asked == []


async def test_whoever_lost_the_record_while_waiting_for_the_lock_changes_nothing(store: MemoryStore) -> None:
    await put(store, KEY, "r1", "one")
    locks = MemoryLocks()
    async with locks.hold(KEY, 0):
        waiting = asyncio.create_task(write(store, WriteLocks(store, locks), "r2", "two"))
        await eventually(lambda: "waiting=1" in repr(locks))
        await store.transfers.release([KEY], Store.A, create=False)
    with pytest.raises(NotOwner):
        await waiting
    row = (await store.records.read(KEY)).row
    assert row is not None and word_of(row.payload) == "one"


async def write_that_others_got_ahead_of(store: MemoryStore, locks_of_writes: WriteLocks) -> Changed | Answered:
    """An ordinary write whose first attempt is overtaken again and again."""
    call = call_of(KEY, "r1")
    attempts = 0

    def decide(found: Found) -> Changed | Answered:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise LockTimeout
        return decide_write(found, store.store, call, putting(sandbox(KEY, "one")))

    return await locks_of_writes.write(call, decide)


async def test_a_write_that_others_got_ahead_of_tries_again_under_the_lock(store: MemoryStore) -> None:
    locks = MemoryLocks()
    async with locks.hold(KEY, 0):
        waiting = asyncio.create_task(write_that_others_got_ahead_of(store, WriteLocks(store, locks)))
        await eventually(lambda: "waiting=1" in repr(locks))
        assert (await store.records.read(KEY)).row is None
    assert isinstance(await waiting, Changed)


async def test_a_write_that_others_got_ahead_of_tries_again_without_locks_while_they_are_away(
    store: MemoryStore,
) -> None:
    away = Away()
    assert isinstance(await write_that_others_got_ahead_of(store, WriteLocks(store, away)), Changed)
    assert away.asked == [KEY]


async def test_a_write_that_waited_for_nobody_is_counted_as_such(store: MemoryStore) -> None:
    """Else the measured waits would be those of busy records alone."""
    undisturbed: list[str] = []
    locks_of_writes = WriteLocks(store, MemoryLocks(), lambda: undisturbed.append(KEY))
    call = call_of(KEY, "r1")
    await locks_of_writes.write(
        call, lambda found: decide_write(found, store.store, call, putting(sandbox(KEY, "one")))
    )
    assert undisturbed == [KEY]
    await write(store, locks_of_writes, "r2", "two")
    assert undisturbed == [KEY], "a write under the lock has measured its own wait"


async def test_a_release_of_many_records_asks_for_no_lock(store: MemoryStore) -> None:
    away = Away()
    async with WriteLocks(store, away).before_release([KEY, "sandboxes/two"]):
        assert away.asked == []
    async with WriteLocks(store, away).before_release([KEY]):
        assert away.asked == [KEY]


async def test_a_release_waits_for_the_holder_of_the_lock(store: MemoryStore) -> None:
    locks = MemoryLocks()
    locks_of_writes = WriteLocks(store, locks)
    order: list[str] = []

    async def release() -> None:
        async with locks_of_writes.before_release([KEY]):
            order.append("released")

    async with locks.hold(KEY, 0):
        waiting = asyncio.create_task(release())
        await eventually(lambda: "waiting=1" in repr(locks))
        order.append("held")
    await waiting
    assert (order, locks.state.held) == (["held", "released"], 0)


async def test_a_release_goes_on_when_the_holder_does_not_leave_or_locks_are_away(store: MemoryStore) -> None:
    locks = MemoryLocks()
    went_on = []
    async with locks.hold(KEY, 0):
        async with asyncio.timeout(10), WriteLocks(store, locks).before_release([KEY]):
            went_on.append("held")
        async with WriteLocks(store, locks).before_release([KEY, "sandboxes/two"]):
            went_on.append("many")
    async with WriteLocks(store, Away()).before_release([KEY]):
        went_on.append("away")
    assert went_on == ["held", "many", "away"]

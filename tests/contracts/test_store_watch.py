"""The contract of stores for watches: no write is missed, a handoff is not a write, a foreign position is refused."""

from __future__ import annotations

import asyncio

import pytest

from libs.ownership.model import NEVER, Version
from libs.store import memory_watch, sqlite_watch
from libs.store.port import FeedStep, Position, StorePorts, UnknownPosition
from services.service_layer.store import postgres_watch
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import own, put, record_of, row_of

KEY = "sandboxes/a"
KEYS = [f"sandboxes/{number:03d}" for number in range(30)]
BOUND_SECONDS = 10.0

_WITH_LIMIT = (memory_watch, sqlite_watch, postgres_watch)


async def changed(store: StorePorts, position: str) -> tuple[set[str], str]:
    """At once."""
    found = await store.watch.since(position, 0)
    return set(found.keys), found.position


async def test_every_write_after_a_place_is_shown_once(store: StorePorts) -> None:
    await own(store, KEYS)
    await put(store, KEYS[0], "r0", "before")
    position = await store.watch.now()
    assert (await changed(store, position))[0] == set()
    await put(store, KEYS[1], "r1", "one")
    await put(store, KEYS[2], "r2", "two")
    await put(store, KEYS[1], "r3", "three")
    keys, after = await changed(store, position)
    assert keys == {KEYS[1], KEYS[2]}
    assert (await changed(store, after))[0] == set()
    await put(store, KEYS[1], "r4", "gone", deleted="yes")
    assert (await changed(store, after))[0] == {KEYS[1]}, "a delete is a write"
    assert (await changed(store, position))[0] == {KEYS[1], KEYS[2]}, "an old position is as good as before"


async def test_what_is_applied_is_shown_and_what_is_older_than_the_row_is_not(store: StorePorts) -> None:
    other = store.store.other
    position = await store.watch.now()
    await store.transfers.apply([record_of(row_of(key, (0, 2), other)) for key in KEYS])
    keys, position = await changed(store, position)
    assert keys == set(KEYS)
    await store.transfers.apply([record_of(row_of(KEYS[0], (0, 1), other)), record_of(row_of(KEYS[1], (0, 3), other))])
    assert (await changed(store, position))[0] == {KEYS[1]}


async def test_a_handoff_is_no_write(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    position = await store.watch.now()
    (released,) = (await store.transfers.release([KEY], store.store.other, create=False)).results
    assert released.record is not None
    back = row_of(KEY, (0, 3), store.store, "one", written="0-1")
    assert (await store.transfers.apply([record_of(back)])).applied == 1
    assert (await changed(store, position))[0] == set()
    await put(store, KEY, "r2", "two")
    assert (await changed(store, position))[0] == {KEY}


async def test_a_stub_is_no_record_and_its_first_write_is_shown(store: StorePorts) -> None:
    await own(store, [KEY])
    position = await store.watch.now()
    await store.transfers.release([KEY], store.store.other, create=True)
    stub = row_of(KEY, (0, 2), store.store, written=f"{NEVER.term}-{NEVER.revision}")
    await store.transfers.apply([record_of(stub)])
    assert (await changed(store, position))[0] == set()
    await put(store, KEY, "r1", "one")
    assert (await changed(store, position))[0] == {KEY}


async def test_a_wait_ends_with_a_write_here_and_with_one_that_is_applied(store: StorePorts) -> None:
    await own(store, [KEY])
    position = await store.watch.now()
    waiting = asyncio.create_task(store.watch.since(position, BOUND_SECONDS))
    await asyncio.sleep(0)
    await put(store, KEY, "r1", "one")
    found = await asyncio.wait_for(waiting, BOUND_SECONDS / 2)
    assert found.keys == (KEY,)
    waiting = asyncio.create_task(store.watch.since(found.position, BOUND_SECONDS))
    await asyncio.sleep(0)
    await store.transfers.apply([record_of(row_of(KEYS[3], (0, 1), store.store.other))])
    found = await asyncio.wait_for(waiting, BOUND_SECONDS / 2)
    assert found.keys == (KEYS[3],)
    waiting = asyncio.create_task(store.watch.since(found.position, BOUND_SECONDS))
    await asyncio.sleep(0)
    step = FeedStep((Position(0, 0, 1),))
    await store.transfers.apply([record_of(row_of(KEYS[4], (0, 1), store.store.other))], step)
    assert (await asyncio.wait_for(waiting, BOUND_SECONDS / 2)).keys == (KEYS[4],)


async def test_a_wait_without_a_write_ends_with_a_place_to_go_on_from(store: StorePorts) -> None:
    await own(store, [KEY])
    found = await store.watch.since(await store.watch.now(), 0.05)
    assert found.keys == ()
    await put(store, KEY, "r1", "one")
    assert (await changed(store, found.position))[0] == {KEY}


async def test_nobody_misses_the_last_write_of_a_key_while_many_write_at_once(store: StorePorts) -> None:
    """The last state that a watch reads of a reported key is the final one."""
    await own(store, KEYS)
    position = await store.watch.now()
    seen: dict[str, Version] = {}

    async def watch() -> None:
        nonlocal position
        while len(seen) < len(KEYS) or min(seen.values()) < (0, 6):
            found = await store.watch.since(position, BOUND_SECONDS)
            for one in await store.records.read_many(found.keys):
                assert one.version >= seen.get(one.key, NEVER), "no version goes back"
                seen[one.key] = one.version
            position = found.position

    async def write(key: str) -> None:
        for number in range(6):
            await put(store, key, f"{key}-{number}", "w")

    async with asyncio.timeout(BOUND_SECONDS):
        await asyncio.gather(watch(), *(write(key) for key in KEYS))
    assert seen == dict.fromkeys(KEYS, (0, 6))


async def test_a_place_outlives_the_process_if_the_records_do(make_store: MakeStore) -> None:
    async with make_store() as store:
        await own(store, KEYS)
        position = await store.watch.now()
        await put(store, KEYS[0], "r0", "one")
    async with make_store() as store:
        if store.backend == "memory":
            with pytest.raises(UnknownPosition):
                await store.watch.since(position, 0)
        else:
            await put(store, KEYS[1], "r1", "two")
            assert (await changed(store, position))[0] == {KEYS[0], KEYS[1]}


async def test_what_is_no_place_is_refused(store: StorePorts) -> None:
    of, _, at = (await store.watch.now()).partition("/")
    undone = ":".join(str(int(number) + 1_000_000) if number else "" for number in at.split(":"))
    for position in ("", "/", "x", of, f"{of}/", f"{of}/-1", f"{of}/{10**19}", f"x{of}/{at}", f"{of}/{undone}"):
        with pytest.raises(UnknownPosition):
            await store.watch.since(position, 0)


async def test_a_place_behind_too_many_writes_is_refused(store: StorePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in _WITH_LIMIT:
        monkeypatch.setattr(module, "MOST_CHANGED", len(KEYS) - 1)
    position = await store.watch.now()
    records = [record_of(row_of(key, (0, 1), store.store.other)) for key in KEYS]
    await store.transfers.apply(records[1:])
    assert len((await store.watch.since(position, 0)).keys) == len(KEYS) - 1
    await store.transfers.apply(records[:1])
    with pytest.raises(UnknownPosition):
        await store.watch.since(position, 0)

"""Watching PostgreSQL while transactions commit in another order than they began, with the guard and without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from services.service_layer.store import postgres_watch
from services.service_layer.store.postgres import PostgresStore, open_store
from tests.contracts.store_adapters import own, put

EARLY, LATE = "sandboxes/early", "sandboxes/late"


@dataclass
class Rig:
    store: PostgresStore
    holder: Any
    """A connection whose transaction is held open."""

    async def begin(self, statement: str) -> None:
        """The transaction has a number from here on, lower than that of every write that begins after."""
        await self.holder.execute("BEGIN")
        await self.holder.execute(statement)

    async def changed(self, position: str) -> tuple[set[str], str]:
        found = await self.store.watch.since(position, 0)
        return set(found.keys), found.position


@pytest.fixture
async def rig(store_dsn: str) -> AsyncIterator[Rig]:
    async with open_store(store_dsn) as store:
        await own(store, [EARLY, LATE])
        for key in (EARLY, LATE):
            await put(store, key, f"{key}-1", "one")
        holder = await asyncpg.connect(store_dsn, command_timeout=20)
        try:
            yield Rig(store, holder)
        finally:
            await holder.close(timeout=5)


_WRITE_LATE = f"UPDATE record SET revision = 2, write_revision = 2 WHERE key = '{LATE}'"


async def late_commit(rig: Rig) -> set[str]:
    """Keys that a watch reports for a write that began first and commits last, after it has reported the other one."""
    position = await rig.store.watch.now()
    await rig.begin(_WRITE_LATE)
    await put(rig.store, EARLY, "r2", "two")
    keys, position = await rig.changed(position)
    assert keys == {EARLY}, "what has not committed is not shown"
    await rig.holder.execute("COMMIT")
    return (await rig.changed(position))[0]


async def test_a_write_that_commits_late_is_seen_after_later_ones(rig: Rig) -> None:
    assert await late_commit(rig) == {LATE}


async def test_a_cursor_over_the_highest_number_seen_would_miss_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = "c.xid >= pg_snapshot_xmax($1::text::pg_snapshot)"
    assert postgres_watch.AFTER in postgres_watch._SINCE
    monkeypatch.setattr(postgres_watch, "_SINCE", postgres_watch._SINCE.replace(postgres_watch.AFTER, cursor))
    assert await late_commit(rig) == set()


async def test_a_transaction_that_stays_open_holds_back_no_watcher(rig: Rig) -> None:
    position = await rig.store.watch.now()
    await rig.begin("SELECT pg_current_xact_id()")
    for number in range(2, 5):
        await put(rig.store, EARLY, f"r{number}", "w")
        keys, position = await rig.changed(position)
        assert keys == {EARLY}
        assert (await rig.changed(position))[0] == set(), "and nothing comes again and again meanwhile"


async def test_the_keys_are_found_by_index_however_many_there_are(rig: Rig) -> None:
    async def explain(connection: Any) -> str:
        rows = await connection.fetch(f"EXPLAIN {postgres_watch._SINCE}", "1:1:", 10)
        return "\n".join(row[0] for row in rows)

    plan = await rig.store.control.run(explain)
    assert "Index Cond: ((xid >=" in plan, plan


async def test_a_write_of_another_process_is_found_by_looking(rig: Rig) -> None:
    position = await rig.store.watch.now()
    await rig.holder.execute(_WRITE_LATE)
    assert (await rig.store.watch.since(position, 10)).keys == (LATE,)


_RESTORED = """
INSERT INTO change (key, xid) SELECT key, (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000)::text::xid8
FROM record ON CONFLICT (key) DO UPDATE SET xid = excluded.xid
"""


async def test_what_another_server_has_counted_is_not_shown_again_and_again(rig: Rig) -> None:
    """A database that was restored from a dump has the transaction numbers of the server where the dump was made, which
    this one may be far from having reached."""
    await rig.holder.execute(_RESTORED)
    position = await rig.store.watch.now()
    assert await rig.changed(position) == (set(), position)
    await put(rig.store, EARLY, "r2", "two")
    keys, position = await rig.changed(position)
    assert keys == {EARLY}
    assert (await rig.changed(position))[0] == set()


async def test_many_watchers_at_once_are_served_in_turn_and_leave_room_for_status(rig: Rig) -> None:
    """More than may wait for the pool: a write wakes all of them."""
    position = await rig.store.watch.now()
    watchers = [asyncio.ensure_future(rig.store.watch.since(position, 20)) for _ in range(120)]
    try:
        await asyncio.sleep(0)
        await put(rig.store, EARLY, "r2", "two")
        assert (await rig.store.inspection.census()).records == 2
        assert {found.keys for found in await asyncio.gather(*watchers)} == {(EARLY,)}
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

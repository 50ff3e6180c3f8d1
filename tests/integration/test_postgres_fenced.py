"""A fenced store on PostgreSQL takes no write, whichever of its processes is asked."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from libs.errors import StoreNotReady
from services.service_layer.store.postgres import open_store
from tests.contracts.store_adapters import own, put
from tests.waiting import eventually

KEY, OTHER = "sandboxes/k", "sandboxes/l"


@pytest.mark.parametrize("key", [KEY, OTHER])
async def test_a_process_that_has_not_seen_the_fence_writes_nothing(store_dsn: str, key: str) -> None:
    async with open_store(store_dsn) as first, open_store(store_dsn) as second:
        await own(first, [KEY, OTHER])
        await put(first, KEY, "r1", "first")
        before = (await first.records.read(key)).row
        await first.recovery.fence("an operator says so")
        with pytest.raises(StoreNotReady, match="an operator says so"):
            await put(second, key, "r2", "second")
        assert (await second.records.read(key)).row == before
        await first.recovery.reopen()
        await put(second, key, "r2", "second")


_BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND query NOT LIKE 'LOCK TABLE%'"
)


async def test_no_write_that_waits_for_a_row_while_the_store_is_fenced_commits_after_the_fence(store_dsn: str) -> None:
    ended: list[str] = []

    async def ends(name: str, work: object) -> None:
        await asyncio.gather(work, return_exceptions=True)  # type: ignore[call-overload]
        ended.append(name)

    async with open_store(store_dsn) as first, open_store(store_dsn) as second:
        await own(first, [KEY])
        await put(first, KEY, "r1", "first")
        holder, observer = await asyncpg.connect(store_dsn), await asyncpg.connect(store_dsn)
        try:
            await holder.execute("BEGIN")
            await holder.execute("SELECT FROM record WHERE key = $1 FOR UPDATE", KEY)
            write = asyncio.ensure_future(ends("write", put(second, KEY, "r2", "second")))

            async def is_blocked() -> bool:
                return bool(await observer.fetchval(_BLOCKED))

            await eventually(is_blocked, what="the write waits for the row")
            fence = asyncio.ensure_future(ends("fence", first.recovery.fence("an operator says so")))

            async def is_fenced() -> bool:
                return bool((await second.recovery.standing()).fence_reason)

            await eventually(is_fenced, what="the fence has committed")
            await holder.execute("ROLLBACK")
            await asyncio.gather(write, fence)
        finally:
            await holder.close()
            await observer.close()
        assert ended == ["write", "fence"]
        before = (await first.records.read(KEY)).row
        with pytest.raises(StoreNotReady, match="an operator says so"):
            await put(second, KEY, "r3", "third")
        assert (await first.records.read(KEY)).row == before

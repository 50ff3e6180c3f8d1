"""A gone store on PostgreSQL takes no write, whichever of its processes is asked."""

from __future__ import annotations

import pytest

from libs.errors import StoreNotReady
from services.service_layer.store.postgres import open_store
from tests.contracts.store_adapters import own, put

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

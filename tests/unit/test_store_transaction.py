"""A store with one writer runs each procedure of the engine to its end in one step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.ownership.model import Store, bucket_of
from libs.store import engine
from libs.store.limits import OutboxLimits
from libs.store.memory import MemoryStore
from libs.store.port import StorePorts
from libs.store.sqlite import SqliteStore
from libs.store.transaction import StartAgain, Transaction, Transactions
from tests.contracts.store_adapters import MEMORY_B, SQLITE_B, Adapter, Place, open_adapter, own

KEY = "sandboxes/a"


def transactions_of(store: StorePorts) -> Transactions:
    assert isinstance(store, MemoryStore | SqliteStore)
    transactions: Transactions = store.records.transactions  # type: ignore[attr-defined]
    return transactions


@pytest.mark.parametrize("adapter", [MEMORY_B, SQLITE_B], ids=str)
async def test_a_procedure_that_waits_is_a_defect_and_changes_nothing(adapter: Adapter, tmp_path: Path) -> None:
    async def waits(tx: Transaction) -> None:
        await engine.release_buckets(tx, [bucket_of(KEY)], Store.A)
        await asyncio.sleep(0)

    async def meets_another_writer(tx: Transaction) -> None:
        await engine.release_buckets(tx, [bucket_of(KEY)], Store.A)
        raise StartAgain

    async with open_adapter(adapter, Place(tmp_path / "store.db", "", ManualClock(), OutboxLimits())) as store:
        await own(store, [KEY])
        before = await store.transfers.bucket_owners([bucket_of(KEY)])
        with pytest.raises(RuntimeError, match="waits inside a transaction"):
            await transactions_of(store).run(waits)
        with pytest.raises(RuntimeError, match="another writer is at work"):
            await transactions_of(store).run(meets_another_writer)
        assert await store.transfers.bucket_owners([bucket_of(KEY)]) == before

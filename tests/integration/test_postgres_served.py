"""A request with an entry whose effect was lost, on a real PostgreSQL: between the read and the commit of a write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.ownership.model import Answered, Store, Version
from libs.store.outbox import Depth
from libs.store.port import Applied
from services.service_layer.store.postgres import open_store
from services.service_layer.store.postgres_transaction import PostgresTransaction
from tests.contracts.store_adapters import put, record_of, row_of, served_of

KEY = "sandboxes/k"


async def test_a_request_that_turns_out_to_be_done_before_the_commit_has_no_second_effect(
    store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(row_of(KEY, (1, 9), Store.B, "one"), bases=(Version(0, 3),))
    async with open_store(store_dsn) as store:
        await store.transfers.apply([record_of(row, served_of("r1", (0, 5)))])
        depth = PostgresTransaction.depth
        learned: list[Applied] = []

        async def arrives(tx: PostgresTransaction) -> Depth:
            if not learned:
                learned.append(await store.transfers.apply([record_of(row, served_of("r1", (1, 4), b"done"))]))
            return await depth(tx)

        monkeypatch.setattr(PostgresTransaction, "depth", arrives)
        assert await put(store, KEY, "r1", "two") == Answered(b"done", Version(1, 4))
        assert learned == [(0, 1)]
        assert (await store.records.read(KEY)).row == row

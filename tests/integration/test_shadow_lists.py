"""Shadow reads of lists: rows are compared by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from libs.errors import StoreNotReady
from libs.ownership.model import Store
from services.router.core.compare import FILTER
from services.router.flows.calls.shadow import MAX_NAMES
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.integration.shadowing import KEY, book, decided, edit, lend, put, replicated, send, shadowed
from tests.integration.test_forward import Moody
from tests.system.whole import System
from tests.waiting import eventually


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with shadowed() as running:
        yield running


async def browse(system: System, **order: Any) -> list[str]:
    data, _ = await send(system, "Browse", pb.BrowseOrder(**order))
    return [found.path for found in pb.Books.FromString(data).found]


async def test_a_lists_rows_are_compared_by_name(system: System) -> None:
    for isbn in "123":
        await put(system, isbn)
    keys = [f"shelf/r/{isbn}" for isbn in "123"]
    await replicated(system, *keys)
    assert await browse(system) == keys
    assert await decided(system) == {"compared": 1, "match": 1}
    edit(system, Store.B, payload=book("somebody", keys[1]), key=keys[1])
    del system.ports(Store.B)._state.rows[keys[2]]
    assert await browse(system) == keys
    assert await decided(system, 2) == {"compared": 2, "match": 1, "mismatch": 1}, "the gravest counts"
    (found,) = system.shadow.report().differences
    assert (found.operation, found.key, found.fields) == ("list", keys[1], ("reader",))
    assert system.shadow.report().operations["list"].mismatch == 1


async def test_a_page_of_one_store_alone_is_not_compared(system: System) -> None:
    await put(system)
    await replicated(system)
    Moody(system, Store.A, *[StoreNotReady("starting")] * 3)
    for _ in range(4):
        assert await browse(system) == [KEY]
    await eventually(lambda: system.shadow.counts.compared > 0 and system.shadow.report().waiting == 0)
    assert (system.traffic.stale_reads, system.shadow.counts.compared) == (3, 1)


async def test_a_row_that_one_stores_list_lacks_is_missing(system: System) -> None:
    await put(system)
    await replicated(system)
    del system.ports(Store.B)._state.rows[KEY]
    assert await browse(system) == [KEY]
    assert await decided(system) == {"compared": 1, "missing": 1}


async def test_stores_that_judge_a_filter_differently_mismatch(system: System) -> None:
    await put(system)
    await lend(system, "ann")
    await replicated(system)
    columns = system.ports(Store.B)._state.columns
    system.ports(Store.B)._state.columns = lambda row: replace(columns(row), equals={"reader": "somebody"})
    await browse(system, reader="ann")
    assert await decided(system) == {"compared": 1, "mismatch": 1}
    assert system.shadow.report().differences[0].fields == (FILTER,)


async def test_a_page_with_many_differences_is_looked_into_here_and_there() -> None:
    async with shadowed() as system:
        keys = [f"shelf/r/{number:02}" for number in range(MAX_NAMES + 4)]
        for key in keys:
            await put(system, key[-2:])
        await replicated(system, *keys)
        for key in keys:
            edit(system, Store.B, key, payload=book("somebody", key))
        while (found := await browse(system, most=7)) and not system.shadow.counts.mismatch:
            assert found == keys[:7]
        assert len({difference.key for difference in system.shadow.report().differences}) == 7

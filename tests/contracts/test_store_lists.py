"""The contract of stores for lists: limited work per page, and no record that never existed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.contract.pages import Filter, Page
from libs.ownership.model import Changed, Store
from libs.store import memory, sqlite_records
from libs.store.port import Listed, StorePorts
from libs.store.sqlite import SqliteStore
from services.service_layer.store import postgres_records
from services.service_layer.store.postgres import PostgresStore
from tests.contracts.store_adapters import call_of, own, put, putting, record_of, row_of, write

KEYS = [f"sandboxes/{number:03d}" for number in range(100)]
FILTERS = [
    Filter(),
    Filter(labels=(("k", "v"),)),
    Filter(equals=(("account", "acme"),), labels=(("k", "v"),)),
    Filter(equals=(("account", "acme"), ("state", "STOPPED")), show_deleted=True),
    Filter(equals=(("state", "STOPPED"),), labels=(("k", "v"),)),
    Filter(equals=(("account", "nobody"),)),
    Filter(labels=(("none", "such"),)),
]


def shows(number: int, wanted: Filter) -> bool:
    known = {"account": ("acme", "corp")[number % 2], "state": ("RUNNING", "STOPPED")[number % 3 == 0]}
    labelled = not wanted.labels or (wanted.labels == (("k", "v"),) and number % 9 in (0, 1))
    return labelled and all(known[name] == value for name, value in wanted.equals)


@pytest.fixture
async def filled(store: StorePorts) -> StorePorts:
    rows = [
        row_of(
            key,
            (0, 1),
            Store.A,
            account=("acme", "corp")[number % 2],
            state=("RUNNING", "STOPPED")[number % 3 == 0],
            label="k:v" if number % 9 in (0, 1) else "",
        )
        for number, key in enumerate(KEYS)
    ]
    await store.transfers.apply([record_of(row) for row in rows])
    return store


async def pages_of(store: StorePorts, wanted: Filter, limit: int) -> list[list[Listed]]:
    pages: list[list[Listed]] = []
    after = ""
    while True:
        pages.append(await store.records.page(Page(wanted, after, limit)))
        last = pages[-1][-1] if pages[-1] else None
        if last is None or (last.matches and len(pages[-1]) < limit):
            return pages
        after = last.row.key


def bounded(monkeypatch: pytest.MonkeyPatch, *, rows: int, step: int, seconds: float) -> None:
    for module in (memory, sqlite_records, postgres_records):
        monkeypatch.setattr(module, "LIST_ROWS", rows)
        monkeypatch.setattr(module, "LIST_STEP_ROWS", step, raising=False)
        monkeypatch.setattr(module, "LIST_SECONDS", seconds, raising=False)


@pytest.mark.parametrize("seconds", [60.0, -1.0])
@pytest.mark.parametrize("wanted", FILTERS, ids=str)
async def test_a_page_that_has_done_its_work_ends_and_the_next_one_goes_on(
    filled: StorePorts, monkeypatch: pytest.MonkeyPatch, wanted: Filter, seconds: float
) -> None:
    bounded(monkeypatch, rows=12, step=4, seconds=seconds)
    pages = await pages_of(filled, wanted, 5)
    rows = [listed for page in pages for listed in page]
    assert [one.row.key for one in rows if one.matches] == [
        key for number, key in enumerate(KEYS) if shows(number, wanted)
    ]
    assert [one.row.key for one in rows] == sorted({one.row.key for one in rows}), "each once, in order"
    assert all(one.matches for page in pages for one in page[:-1]), "only the last row may be one that does not match"
    assert all(sum(one.matches for one in page) <= 5 for page in pages)


async def test_a_page_without_a_match_ends_after_its_share_of_rows(
    filled: StorePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded(monkeypatch, rows=20, step=10, seconds=60.0)
    (only,) = await filled.records.page(Page(Filter(labels=(("none", "such"),))))
    assert (only.row.key, only.matches) == (KEYS[20], False)


async def test_a_page_that_is_out_of_time_ends(filled: StorePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, rows=1000, step=10, seconds=-1.0)
    found = await filled.records.page(Page(Filter(labels=(("none", "such"),))))
    if filled.backend != "memory":
        assert [(one.row.key, one.matches) for one in found] == [(KEYS[10], False)]


async def test_a_page_is_full_before_it_ends_if_enough_rows_match(filled: StorePorts) -> None:
    found = await filled.records.page(Page(Filter(), limit=7))
    assert [(one.row.key, one.matches) for one in found] == [(key, True) for key in KEYS[:7]]
    assert len(await filled.records.page(Page(Filter(), KEYS[90], 50))) == 9


async def test_a_record_that_never_was_is_in_no_list_and_no_watch(store: StorePorts) -> None:
    """As a delete of an absent record leaves it, which remembers its request."""
    key = "sandboxes/never"
    await own(store, [key])
    assert isinstance(await write(store, call_of(key, "r1"), putting(b"", live=False)), Changed)
    everything = Filter(show_deleted=True)
    assert await store.records.page(Page(everything)) == []
    (looked,) = await store.records.page(Page(everything, keys=(key,)))
    assert not looked.matches
    await put(store, key, "r2", "made")
    await put(store, key, "r3", "made", deleted="yes")
    assert [one.row.key for one in await store.records.page(Page(everything))] == [key]


@pytest.mark.parametrize("column", ["account", "state"])
async def test_a_list_of_one_account_or_state_follows_an_index(filled: StorePorts, column: str) -> None:
    if isinstance(filled, SqliteStore):
        table = "sandboxes" if filled.store is Store.A else "record"

        def plan(connection: Any) -> str:
            step = f"SELECT r.key FROM {table} r WHERE r.{column} = ? AND r.key > ? ORDER BY r.key LIMIT 1 OFFSET 9"
            return " ".join(row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {step}", ("x", "")))

        found = await filled._database.read(plan)
        assert f"{table}_{column}_key ({column}=? AND key>?)" in found and "TEMP" not in found
    if isinstance(filled, PostgresStore):
        statement = f"EXPLAIN (FORMAT JSON) {postgres_records.PAGE_TO[column]}"
        arguments = (*postgres_records._filter_arguments(Filter()), "x", "", 5, KEYS[50])

        async def work(connection: Any) -> str:
            return str(await connection.fetchval(statement, *arguments))

        found = json.dumps(await filled.requests.run(work))
        assert f"record_{column}_key" in found and "Sort" not in found


async def test_a_list_of_several_accounts_examines_rows_of_these_only(filled: StorePorts) -> None:
    if isinstance(filled, PostgresStore):
        arguments = (*postgres_records._filter_arguments(Filter()), ["acme", "corp"], "")
        statements: list[tuple[str, tuple[Any, ...]]] = [
            (postgres_records.STEP_END["accounts"], (["acme", "corp"], "", 9)),
            (postgres_records.PAGE["accounts"], (*arguments, 5)),
            (postgres_records.PAGE_TO["accounts"], (*arguments, 5, KEYS[50])),
            (postgres_records.NEXT["accounts"], arguments),
        ]

        async def work(connection: Any) -> list[str]:
            return [
                str(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *given)) for text, given in statements
            ]

        for found in await filled.requests.run(work):
            assert "record_account_key" in found and "Seq Scan" not in found

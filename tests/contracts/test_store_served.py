"""The contract of stores for served requests: one counts as done only at a row with its effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from libs.ownership.errors import NotOwner
from libs.ownership.limits import RETRY_WINDOW_SECONDS, SERVED_WINDOW
from libs.ownership.model import Answered, BucketOwner, Changed, Record, Store, Version, bucket_of
from libs.ownership.terms import next_term
from libs.ownership.wire import record_of_event
from libs.store import sqlite_inspection
from libs.store.inspection import ExportQuery
from libs.store.limits import PRUNE_ROWS
from libs.store.port import StorePorts
from services.service_layer.store import postgres_inspection
from services.service_layer.store.postgres_transaction import served_up_to
from tests.contracts.store_adapters import ADAPTERS_AND_FORMS, Adapter, own, put, record_of, row_of, served_of

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

KEY = "sandboxes/a"
BUCKET = bucket_of(KEY)


def ahead(owner: Store, *requests: str) -> Record:
    """Version (0, 1), which shows r1, with requests whose effects are in later versions."""
    row = row_of(KEY, (0, 1), owner, "one")
    late = [served_of(request, (0, 5 + number), b"late") for number, request in enumerate(requests)]
    return record_of(row, served_of("r1", (0, 1), b"one"), *late)


async def exported(store: StorePorts) -> tuple[Version, dict[str, Version]]:
    """The record's version, and its requests with theirs."""
    (record,), _ = await store.inspection.export(ExportQuery(keys=(KEY,)))
    return record.row.version, {one.request_id: one.version for one in record.served}


async def test_an_owner_runs_a_request_whose_effect_is_not_in_its_row(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store, "r2")])
    again = await put(store, KEY, "r2", "two")
    assert isinstance(again, Changed) and again.version == (0, 2)
    known = await put(store, KEY, "r2", "two")
    assert isinstance(known, Answered) and known == Answered(again.answer, Version(0, 2))
    first = await put(store, KEY, "r1", "one")
    assert isinstance(first, Answered) and first.version == (0, 1)


async def test_the_entry_of_a_request_that_ran_again_is_replaced_and_travels(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store, "r2", "r3")])
    assert (await put(store, KEY, "r3", "three")).version == (0, 2)
    (entry,) = await store.outbox.pull(10, 0)
    assert [one.version for one in record_of_event(entry.event).served] == [(0, 2)]
    (result,) = (await store.transfers.release([KEY], store.store.other, create=False)).results
    assert result.record is not None
    assert {one.request_id: one.version for one in result.record.served} == {"r1": (0, 1), "r3": (0, 2)}


async def test_another_store_answers_that_it_is_not_the_owner(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store.other, "r2")])
    with pytest.raises(NotOwner):
        await put(store, KEY, "r2", "two")
    assert isinstance(await put(store, KEY, "r1", "one"), Answered), "its effect is here"
    await store.transfers.apply([record_of(row_of(KEY, (0, 5), store.store.other, "two"))])
    outcome = await put(store, KEY, "r2", "two")
    assert outcome == Answered(b"late", Version(0, 5)), "the row has reached its version"


async def test_a_request_of_a_hidden_row_is_not_answered(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    term = next_term(0, store.store.other)
    await store.seizures.take_terms([BucketOwner(BUCKET, term, 9, store.store.other)])
    with pytest.raises(NotOwner):
        await put(store, KEY, "r1", "one")


async def test_a_request_of_an_older_term_is_done_if_the_seizure_had_seen_it(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store.other, "r2")])
    await store.seizures.seize(BUCKET, next_term(0, store.store))
    assert isinstance(await put(store, KEY, "r1", "one"), Answered)
    again = await put(store, KEY, "r2", "two")
    assert isinstance(again, Changed) and again.version == (next_term(0, store.store), 3)


async def test_a_request_of_a_later_version_in_the_terms_before_is_not_done_by_a_higher_term(store: StorePorts) -> None:
    term = next_term(0, store.store)
    row = replace(row_of(KEY, (term, 9), store.store), bases=(Version(0, 3),))
    await store.transfers.apply([record_of(row, *(served_of(f"r{number}", (0, number)) for number in (3, 4)))])
    assert isinstance(await put(store, KEY, "r3", "w"), Answered)
    assert isinstance(await put(store, KEY, "r4", "w"), Changed)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize("together", [True, False])
async def test_of_two_versions_of_one_request_the_higher_one_stays(
    store: StorePorts, order: tuple[int, int], together: bool
) -> None:
    records = [record_of(row_of(KEY, (0, 2), store.store), served_of("r1", (0, number))) for number in order]
    for batch in [records] if together else [[record] for record in records]:
        await store.transfers.apply(batch)
    assert await exported(store) == ((0, 2), {"r1": (0, 2)})


async def test_requests_whose_effects_are_not_in_the_row_do_not_travel(store: StorePorts) -> None:
    """However many there are: they take no place of those that are done."""
    await store.transfers.apply([ahead(store.store, *(f"late{number}" for number in range(SERVED_WINDOW + 6)))])
    assert await exported(store) == ((0, 1), {"r1": (0, 1)})
    (result,) = (await store.transfers.release([KEY], store.store.other, create=False)).results
    assert result.record is not None and [one.request_id for one in result.record.served] == ["r1"]


async def test_requests_whose_effects_are_not_in_the_row_are_not_in_the_event_of_a_seizure(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store.other, "r2")])
    await store.seizures.seize(BUCKET, next_term(0, store.store))
    (entry,) = await store.outbox.pull(10, 0)
    assert [one.request_id for one in record_of_event(entry.event).served] == ["r1"]


Between = Callable[[Callable[[], Awaitable[Any]]], None]


@pytest.fixture
def between(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Between:
    """Has work done after an export has read its rows and before it reads their requests. In memory nothing can."""

    def arrange(work: Callable[[], Awaitable[Any]]) -> None:
        if adapter.sqlite:
            loop, with_served = asyncio.get_running_loop(), sqlite_inspection._with_served

            async def do() -> None:
                await work()

            def later(*arguments: Any) -> set[str]:
                asyncio.run_coroutine_threadsafe(do(), loop).result(10)
                return with_served(*arguments)

            monkeypatch.setattr(sqlite_inspection, "_with_served", later)
        if adapter.postgres:

            async def afterwards(*arguments: Any) -> Any:
                await work()
                return await served_up_to(*arguments)

            monkeypatch.setattr(postgres_inspection, "served_up_to", afterwards)

    return arrange


async def test_an_export_shows_no_request_beside_an_older_row(store: StorePorts, between: Between) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    between(lambda: put(store, KEY, "r2", "two"))
    assert await exported(store) == ((0, 1), {"r1": (0, 1)})


async def test_an_export_shows_a_row_with_the_requests_of_the_same_moment(store: StorePorts, between: Between) -> None:
    """A row that goes to the journal takes its requests along."""
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    term = next_term(0, store.store.other)
    theirs = record_of(row_of(KEY, (term, 1), store.store.other, "theirs"))
    between(lambda: store.transfers.apply([theirs]))
    assert await exported(store) == ((0, 1), {"r1": (0, 1)})


async def test_the_other_store_runs_a_request_again_whose_effect_was_lost_with_its_disk(
    store: StorePorts, across: StorePorts
) -> None:
    """The request came with an export beside the row from before it, as a program of the release before sends it."""
    await own(store, [KEY])
    await put(store, KEY, "r1", "one")
    (copied,), _ = await store.inspection.export(ExportQuery(keys=(KEY,)))
    lost = await put(store, KEY, "r2", "two")
    assert isinstance(lost, Changed)
    await across.transfers.apply([replace(copied, served=(*copied.served, lost.served))])
    with pytest.raises(NotOwner):
        await put(across, KEY, "r2", "two")
    await across.seizures.seize(BUCKET, next_term(0, across.store))
    assert isinstance(await put(across, KEY, "r2", "two"), Changed)
    assert isinstance(await put(across, KEY, "r1", "one"), Answered)


async def test_batches_forget_everything_that_is_older_than_the_retry_window(store: StorePorts) -> None:
    """Also behind an entry that was replaced: it is as young as its last effect."""
    many = [served_of(f"r{number}", (0, 1)) for number in range(2 * PRUNE_ROWS + 10)]
    await store.transfers.apply([record_of(row_of(KEY, (0, 1), store.store), *many, served_of("late", (0, 5)))])
    await store.upkeep.tick(RETRY_WINDOW_SECONDS / 2 + 1)
    assert isinstance(await put(store, KEY, "late", "w"), Changed)
    await store.upkeep.tick(RETRY_WINDOW_SECONDS / 2)
    assert [await store.upkeep.prune() for _ in range(4)] == [PRUNE_ROWS, PRUNE_ROWS, 10, 0]
    assert isinstance(await put(store, KEY, "late", "w"), Answered)

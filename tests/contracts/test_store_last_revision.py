"""A record with the last revision of its term: refused by name, left where it is, and freed by a seizure."""

from __future__ import annotations

import pytest

from libs.ownership.errors import RevisionExhausted
from libs.ownership.limits import MAX_REVISION, MAX_STORED_REVISION
from libs.ownership.model import Changed, Outcome, Version, bucket_of
from libs.ownership.terms import next_term
from libs.ownership.wire import check_versions, record_of_event
from libs.store.port import StorePorts
from tests.contracts.store_adapters import own, put, record_of, row_of

KEY, OTHER = "sandboxes/a", "sandboxes/b"
BUCKET = bucket_of(KEY)


async def filled(store: StorePorts, revision: int) -> None:
    await own(store, [KEY, OTHER])
    await store.transfers.apply([record_of(row_of(KEY, (0, revision), store.store, "poison"))])


@pytest.mark.parametrize("revision", [MAX_REVISION, MAX_STORED_REVISION])
async def test_a_write_at_the_last_revision_is_refused_and_other_records_are_written(
    store: StorePorts, revision: int
) -> None:
    await filled(store, revision)
    with pytest.raises(RevisionExhausted, match="baton recover"):
        await put(store, KEY, "r1", "new")
    await put(store, OTHER, "r1", "new")
    assert (await store.records.read(KEY)).version == (0, revision)


async def test_a_release_at_the_last_stored_revision_leaves_the_record_and_releases_the_others(
    store: StorePorts,
) -> None:
    await filled(store, MAX_STORED_REVISION)
    await put(store, OTHER, "r1", "new")
    released = await store.transfers.release([KEY, OTHER], store.store.other, create=False)
    assert {one.key: one.outcome for one in released.results} == {KEY: Outcome.EXHAUSTED, OTHER: Outcome.RELEASE}
    assert (await store.records.read(KEY)).version == (0, MAX_STORED_REVISION)


@pytest.mark.parametrize("revision", [MAX_REVISION, MAX_STORED_REVISION])
async def test_a_seizure_restarts_the_revision_and_the_record_is_written_again(
    store: StorePorts, across: StorePorts, revision: int
) -> None:
    await filled(store, revision)
    term = next_term(0, store.store)
    await store.seizures.seize(BUCKET, term)
    row = (await store.records.read(KEY)).row
    assert row is not None and (row.version, row.bases) == ((term, 1), ((0, revision),))
    changed = await put(store, KEY, "r1", "new")
    assert isinstance(changed, Changed) and changed.version == Version(term, 2)
    # The other store has the poison too, and gets the changes after the seizure through the log.
    await across.transfers.apply([record_of(row_of(KEY, (0, revision), store.store, "poison"))])
    events = [record_of_event(entry.event) for entry in await store.outbox.pull(10, 0)]
    assert {event.origin for event in events} == {store.store}, "a feed skips what its own store has made"
    check_versions(events[-1].row)
    await across.transfers.apply(events)
    assert (await across.records.read(KEY)).row == (await store.records.read(KEY)).row
    assert (await across.seizures.conflicts(10)) == []

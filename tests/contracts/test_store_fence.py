"""Every adapter fences in its own statement: a decision that ignores ownership or the fence changes nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from libs.errors import StoreNotReady
from libs.ownership.errors import NotOwner
from libs.ownership.model import Answered, Changed, Decide, Found, Row, Version, bucket_of
from libs.ownership.rules import decide_write
from libs.store.port import StorePorts
from libs.store.transaction import Put, PutHead, Transaction
from tests.contracts.store_adapters import (
    ADAPTERS_AND_FORMS,
    call_of,
    own,
    put,
    putting,
    record_of,
    row_of,
    sandbox,
    transactions_of,
)

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

KEY, OTHER = "sandboxes/a", "sandboxes/b"


def ignoring_ownership(store: StorePorts, key: str) -> Decide:
    """Decides as if this store owned the record and its bucket."""

    def decide(found: Found) -> Changed | Answered:
        row = replace(found.row, owner=store.store) if found.row is not None else None
        pretended = replace(found, row=row, bucket_owner=replace(found.bucket_owner, owner=store.store))
        return decide_write(pretended, store.store, call_of(key, "r1"), putting(sandbox(key, "stolen")))

    return decide


async def left_alone(store: StorePorts, key: str) -> None:
    """No event, and the request is not served: its retry at the owner has its effect."""
    assert (await store.outbox.depth()).entries == 0
    assert await store.outbox.pull(10, 0) == []
    assert (await store.records.write(call_of(key, "r1"), lambda found: Answered(b"", found.version))).answer == b""


async def test_a_create_in_a_bucket_of_the_other_store_is_refused(store: StorePorts) -> None:
    await give_away(store, KEY)
    before = await store.records.read(KEY)
    assert before.row is None and before.bucket_owner.owner is store.store.other
    with pytest.raises(NotOwner):
        await store.records.write(call_of(KEY, "r1"), ignoring_ownership(store, KEY))
    assert await store.records.read(KEY) == before
    await left_alone(store, KEY)


async def give_away(store: StorePorts, key: str) -> None:
    """The other store owns the key's bucket."""
    if (await store.records.read(key)).bucket_owner.owner is store.store:
        await store.transfers.release_bucket(bucket_of(key), store.store.other)


@pytest.mark.parametrize("bucket_is_mine", [True, False])
async def test_an_update_of_a_record_of_the_other_store_is_refused(store: StorePorts, bucket_is_mine: bool) -> None:
    await (own(store, [KEY]) if bucket_is_mine else give_away(store, KEY))
    await store.transfers.apply([record_of(row_of(KEY, (0, 4), store.store.other, "theirs"))])
    before = await store.records.read(KEY)
    with pytest.raises(NotOwner):
        await store.records.write(call_of(KEY, "r1"), ignoring_ownership(store, KEY))
    assert await store.records.read(KEY) == before
    await left_alone(store, KEY)


async def test_a_fenced_store_accepts_no_write_and_no_release(store: StorePorts) -> None:
    await own(store, [KEY, OTHER])
    await put(store, KEY, "r0", "zero")
    before = await store.records.read(KEY)
    await store.recovery.fence("an operator says so")
    for key in (KEY, OTHER):
        with pytest.raises(StoreNotReady, match="an operator says so"):
            await put(store, key, "r1", "late")
    for key in (KEY, OTHER):
        with pytest.raises(StoreNotReady, match="an operator says so"):
            await store.transfers.release([key], store.store.other, create=True)
    assert await store.records.read(KEY) == before
    assert (await store.records.read(OTHER)).row is None
    assert (await store.outbox.depth()).entries == 1
    await store.recovery.reopen()
    await put(store, KEY, "r1", "after")


@pytest.mark.parametrize("own_change", [True, False])
@pytest.mark.parametrize("form", ["payload", "envelope", "head"])
async def test_a_row_that_changed_after_the_decision_is_left_alone(
    store: StorePorts, form: str, own_change: bool
) -> None:
    await own(store, [KEY])
    await put(store, KEY, "r0", "first")
    decided_on = await row_in(store, KEY)
    await put(store, KEY, "r1", "second")
    now = await row_in(store, KEY)
    assert now.version > decided_on.version and now.owner is decided_on.owner
    later = Version(now.version.term, now.version.revision + 1)
    row = row_of(KEY, later, store.store, "third") if form == "payload" else replace(decided_on, version=later)

    async def change(tx: Transaction, before: Row) -> set[str]:
        if form == "head":
            return await tx.put_heads([PutHead(row.head, before.head)], own=own_change)
        return await tx.put([Put(row, before)], own=own_change)

    transactions = transactions_of(store)
    assert await transactions.run(partial(change, before=decided_on)) == {KEY}
    assert await row_in(store, KEY) == now
    assert await transactions.run(partial(change, before=replace(now, payload=row.payload))) == set()
    assert (await row_in(store, KEY)).version == later


async def row_in(store: StorePorts, key: str) -> Row:
    row = (await store.records.read(key)).row
    assert row is not None
    return row

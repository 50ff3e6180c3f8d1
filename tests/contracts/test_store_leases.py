"""How long a store has known a lease: the count of every adapter, and its restarts."""

from __future__ import annotations

import pytest

from libs.ownership.model import Answered, Changed, Found, Record, Store, Version
from libs.ownership.rules import decide_write
from libs.pb.sandbox.v1.sandbox_pb2 import Lease, Sandbox
from libs.store.port import StorePorts
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import ADAPTERS_AND_FORMS, call_of, own, putting, record_of, row_of, write

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

KEY = "sandboxes/a"


def leased(token: str, renewals: int = 0, word: str = "w") -> bytes:
    """A sandbox that shows this lease; "": none."""
    made = Sandbox(name=KEY, annotations={"word": word})
    if token:
        made.lease.CopyFrom(Lease(holder="ann", token=token, renewals=renewals))
    return made.SerializeToString(deterministic=True)


async def known_for(store: StorePorts) -> float:
    """The lease's age as a write sees it, in seconds of the store's ticks."""
    seen: list[float] = []

    def look(found: Found) -> Changed | Answered:
        assert found.row is not None
        seen.append(found.row.lease_seconds)
        return Answered(b"", found.version)

    await store.records.write(call_of(KEY, "look"), look)
    return seen[-1]


async def put(store: StorePorts, request: str, payload: bytes) -> None:
    assert isinstance(await write(store, call_of(KEY, request), putting(payload)), Changed)


def from_elsewhere(revision: int, payload: bytes, owner: Store = Store.A) -> Record:
    made = row_of(KEY, (0, revision), owner)
    return record_of(type(made)(KEY, Version(0, revision), owner, Version(0, revision), True, payload, 1))


async def test_a_lease_is_counted_from_its_grant_in_ticks(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, "r1", leased(""))
    await store.upkeep.tick(5.0)
    await put(store, "r2", leased("0.2"))
    assert await known_for(store) == 0.0
    await store.upkeep.tick(1.5)
    assert await known_for(store) == 1.5


async def test_other_writes_and_a_release_do_not_begin_the_count_anew_and_a_renewal_does(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, "r1", leased("0.1"))
    await store.upkeep.tick(1.0)
    await put(store, "r2", leased("0.1", word="other"))
    assert await known_for(store) == 1.0
    await put(store, "r3", leased("0.1", renewals=1))
    assert await known_for(store) == 0.0
    await store.upkeep.tick(1.0)
    await store.transfers.release([KEY], store.store.other, create=False)
    assert await known_for(store) == 1.0
    await store.upkeep.tick(1.0)
    await store.transfers.apply([from_elsewhere(5, leased("0.1", renewals=1), store.store)])
    assert await known_for(store) == 2.0, "it came back as it was"


async def test_a_lease_that_comes_from_elsewhere_is_counted_from_then_on(store: StorePorts) -> None:
    await store.transfers.apply([from_elsewhere(3, leased("0.3"))])
    await store.upkeep.tick(2.0)
    assert await known_for(store) == 2.0
    await store.transfers.apply([from_elsewhere(4, leased("0.3", word="other"))])
    assert await known_for(store) == 2.0
    await store.transfers.apply([from_elsewhere(5, leased("0.5"))])
    assert await known_for(store) == 0.0
    await store.upkeep.tick(1.0)
    await store.transfers.apply([from_elsewhere(4, leased("0.4"))])
    assert await known_for(store) == 1.0, "an older record changes nothing"


async def test_the_count_survives_the_process(make_store: MakeStore) -> None:
    async with make_store() as store:
        await own(store, [KEY])
        await put(store, "r1", leased("0.1"))
        await store.upkeep.tick(1.0)
        if store.backend == "memory":
            return
    async with make_store() as store:
        assert await known_for(store) == 1.0


async def test_without_a_lease_nothing_is_counted(store: StorePorts) -> None:
    await own(store, [KEY])
    await put(store, "r1", leased("0.1"))
    await put(store, "r2", leased(""))
    await store.upkeep.tick(9.0)
    assert await known_for(store) == 0.0


async def test_a_decision_for_a_write_is_made_on_the_row_and_the_lease_of_one_moment(store: StorePorts) -> None:
    """`lease_seconds` is not part of the comparison of rows, and is not copied."""
    await own(store, [KEY])
    await put(store, "r1", leased("0.1"))
    await store.upkeep.tick(3.0)
    call = call_of(KEY, "r2")
    after = await store.records.write(
        call, lambda found: decide_write(found, store.store, call, putting(leased("0.1", word="x")))
    )
    assert isinstance(after, Changed) and after.row.lease_seconds == 0.0
    assert (await store.records.read(KEY)).row == after.row

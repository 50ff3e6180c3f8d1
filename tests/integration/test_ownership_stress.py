"""Both stores under faults of the network, crashes and wrong flags, with every invariant checked at the end.

A run is repeated by its seed, which a failure shows: BATON_STRESS_SEED=... (exact in memory; on real stores the machine
orders concurrent steps).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from secrets import randbelow

import pytest

from libs.clock import SystemClock
from libs.ownership.errors import NotOwner
from libs.ownership.model import (
    Answered,
    BucketOwner,
    BulkEntry,
    Call,
    Changed,
    Decide,
    Found,
    Head,
    Record,
    Row,
    Served,
    Store,
    Version,
)
from libs.ownership.rules import Take, bulk_entry, decide_take, read_as_owner
from libs.ownership.terms import Fate, Verdict, decide_apply
from libs.proving.history.history import Outcome
from libs.store import engine, engine_apply, memory
from libs.store.limits import OutboxLimits
from libs.store.memory_transaction import MemoryTransaction
from libs.store.transaction import Put, Transaction
from tests.contracts.store_adapters import (
    MEMORY_A,
    MEMORY_B,
    POSTGRES,
    SQLITE_A,
    SQLITE_B,
    Adapter,
    Place,
    open_adapter,
)
from tests.stress.calls import Write
from tests.stress.checks import Finding, findings
from tests.stress.coordinator import Coordinator, Unknown
from tests.stress.run import Run


def new_seed() -> int:
    return int(os.environ.get("BATON_STRESS_SEED") or randbelow(1 << 32))


async def played(adapters: tuple[Adapter, Adapter], directory: Path, seed: int, *, dsn: str = "", calls: int) -> Run:
    run, found = await _play(adapters, directory, seed, dsn, calls)
    shown = "\n".join(f"  {finding.invariant}: {finding.text}" for finding in found[:10])
    assert not found, f"BATON_STRESS_SEED={seed}: {len(found)} findings\n{shown}"
    return run


async def _play(
    adapters: tuple[Adapter, Adapter], directory: Path, seed: int, dsn: str, calls: int
) -> tuple[Run, list[Finding]]:
    async with AsyncExitStack() as stack:
        stores = {
            adapter.store: await stack.enter_async_context(
                open_adapter(adapter, Place(directory / f"{adapter}.db", dsn, SystemClock(), OutboxLimits()))
            )
            for adapter in adapters
        }
        run = Run(stores, seed, calls)
        await run.play()
        return run, await findings(run)


def assert_that_much_happened(run: Run) -> None:
    """Else a run without findings says nothing."""
    outcomes = Counter((call.method, call.outcome) for call in run.history)
    for method in ("create", "update", "delete"):
        for outcome in Outcome:
            assert outcomes[method, outcome] > 10, outcomes
    assert outcomes["get", Outcome.OK] > 100
    makers = Counter(
        record.row.owner for record in run.events.values() if record.row.version == record.row.write_version
    )
    assert min(makers[store] for store in Store) > 50, makers
    released = sum(record.row.version != record.row.write_version for record in run.events.values())
    assert released > 100
    assert run.taken > 10


@pytest.mark.parametrize("number", range(5))
async def test_the_protocol_holds_on_two_stores_in_memory(number: int, tmp_path: Path) -> None:
    run = await played((MEMORY_A, MEMORY_B), tmp_path, new_seed() + number, calls=100)
    assert_that_much_happened(run)


async def test_the_protocol_holds_on_the_old_store_and_the_embedded_new_one(tmp_path: Path) -> None:
    run = await played((SQLITE_A, SQLITE_B), tmp_path, new_seed(), calls=100)
    assert_that_much_happened(run)


async def test_the_protocol_holds_on_the_old_store_and_postgresql(tmp_path: Path, store_dsn: str) -> None:
    run = await played((SQLITE_A, POSTGRES), tmp_path, new_seed(), dsn=store_dsn, calls=300)
    assert_that_much_happened(run)


# A check that cannot fail proves nothing: each rule that is taken away here must be missed by the checks.

SEEDS = range(20, 50)
"""Seeds of the runs below, which are the same each time."""


async def missed(directory: Path, invariant: str) -> None:
    """Fails unless one of the runs breaks this."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        _, found = await _play((MEMORY_A, MEMORY_B), directory, seed, "", 100)
        seen.update(finding.invariant for finding in found)
        if seen[invariant]:
            return
    pytest.fail(f"not noticed in {len(SEEDS)} runs; seen: {seen}")


async def test_it_is_noticed_when_whatever_arrives_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(record: Record, here: Row | None, bucket_owner: BucketOwner, me: Store) -> Verdict:
        return replace(decide_apply(record, here, bucket_owner, me), fate=Fate.NEWER)

    monkeypatch.setattr(engine_apply, "decide_apply", always)
    await missed(tmp_path, "I3")


async def test_it_is_noticed_when_a_bulk_release_is_taken_on_an_older_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def any_older(
        entry: BulkEntry, here: Head | None, bucket_owner: BucketOwner, me: Store, known: Collection[bytes]
    ) -> Take:
        if here is not None and here.version < entry.version and here.owner is me.other:
            return Take.TAKE
        return decide_take(entry, here, bucket_owner, me, known)

    monkeypatch.setattr(engine_apply, "decide_take", any_older)
    await missed(tmp_path, "I5")


async def test_it_is_noticed_when_a_bulk_release_does_not_name_its_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "bulk_entry", lambda before, after, served: bulk_entry(before, after, ()))
    await missed(tmp_path, "I4")


async def test_it_is_noticed_when_a_release_forgets_the_served_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_requests(tx: Transaction, rows: Sequence[Row]) -> Mapping[str, tuple[Served, ...]]:
        return {}

    monkeypatch.setattr(engine, "windows", no_requests)
    await missed(tmp_path, "I4")


async def test_it_is_noticed_when_a_create_ignores_who_owns_the_bucket_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anybody_creates(found: Found, me: Store) -> bool:
        return found.row is None or found.owner is me

    put = MemoryTransaction.put

    async def unfenced(tx: MemoryTransaction, puts: Sequence[Put], *, own: bool) -> set[str]:
        return await put(tx, puts, own=False)

    monkeypatch.setattr("libs.ownership.rules.may_change", anybody_creates)
    # The fence in the store's own statement asks again.
    monkeypatch.setattr(MemoryTransaction, "put", unfenced)
    await missed(tmp_path, "I2")


async def test_it_is_noticed_when_a_write_commits_although_the_row_has_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(records: memory._Records, call: Call, decide: Decide) -> Changed | Answered:
        decided = decide(records.state.find(call.key, call))
        await asyncio.sleep(0)
        if isinstance(decided, Changed):
            changed = decided

            async def store(tx: Transaction) -> None:
                before = (await tx.rows([call.key])).get(call.key)
                await tx.put([Put(changed.row, before)], own=False)
                await tx.learn([(call.key, changed.served)])
                await tx.enqueue([engine.entry_of(engine.record_of(tx, changed.row, (changed.served,)))])

            await records.transactions.run(store)
        return decided

    monkeypatch.setattr(memory._Records, "write", write)
    await missed(tmp_path, "I2")


async def test_it_is_noticed_when_a_refusal_after_a_lost_attempt_is_told_as_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_elsewhere(coordinator: Coordinator, store: Store, write: Write) -> Version:
        try:
            return await coordinator._send(store, write)
        except NotOwner:
            raise Unknown from None

    monkeypatch.setattr(Coordinator, "_write_elsewhere", write_elsewhere)
    await missed(tmp_path, "I5")


async def test_it_is_noticed_when_a_read_takes_the_targets_row_if_both_stores_deny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(coordinator: Coordinator, key: str) -> Row | None:
        to = coordinator._any_store()
        for store in (to, to.other):
            await coordinator.pause()
            with suppress(NotOwner):
                return read_as_owner(await coordinator.stores[store].records.read(key), store)
        return (await coordinator.stores[to].records.read(key)).row

    monkeypatch.setattr(Coordinator, "read", read)
    await missed(tmp_path, "I5")


async def test_it_is_noticed_when_a_bucket_owner_is_adopted_before_its_records_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def copy_nothing(coordinator: Coordinator, bucket: int, to: Store) -> bool:
        return True

    monkeypatch.setattr(Coordinator, "_copy_missing", copy_nothing)
    await missed(tmp_path, "I2")


async def test_it_is_noticed_when_a_bucket_that_was_released_is_left_without_an_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(transfers: memory._Transfers, bucket_owner: BucketOwner) -> tuple[bool, BucketOwner]:
        return False, transfers._state.bucket_owners[bucket_owner.bucket]

    monkeypatch.setattr(memory._Transfers, "adopt_bucket", refuse)
    await missed(tmp_path, "I11")


async def test_it_is_noticed_when_apply_makes_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = engine_apply._Batch._store

    async def store_and_tell(batch: engine_apply._Batch) -> None:
        rows, tx = list(batch._rows.values()), batch._tx
        await store(batch)
        await tx.enqueue([engine.entry_of(engine.record_of(tx, row, ())) for row in rows])

    monkeypatch.setattr(engine_apply._Batch, "_store", store_and_tell)
    await missed(tmp_path, "I9")

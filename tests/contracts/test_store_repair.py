"""A record that the contract cannot have is shown, replaced and deleted on an operator's order, at every store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import pytest

from libs.backend.arrivals import Arrivals
from libs.backend.calls import Dependencies
from libs.backend.logged import LogWaits
from libs.backend.repair import NoRecord, RecordReadable, RepairApi
from libs.backend.serving import Serving
from libs.clock import ManualClock
from libs.contract.pages import Filter, Page
from libs.errors import InvalidField
from libs.eventlog.port import Event
from libs.ownership.errors import NotOwner
from libs.ownership.model import Version
from libs.ownership.wire import record_of_event, version_to_pb
from libs.pb.baton.replication.v1 import repair_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.sandboxes.operations import SandboxOperations
from libs.store.port import StorePorts
from libs.tasks import Background
from tests.contracts.store_adapters import own, put, record_of, row_of

POISON, FOREIGN, FINE = "sandboxes/poison", "poison", "sandboxes/fine"
NO_CONTEXT = cast(Any, None)


def repair_of(store: StorePorts, clock: ManualClock) -> RepairApi:
    serving = Serving()
    serving.serve()
    around = Dependencies(serving, Background(8, "writes"), clock, LogWaits(store.outbox, 5.0, lambda: ""))
    return RepairApi(SandboxOperations(), store, around)


async def poisoned(store: StorePorts, key: str, *, schema_version: int = 2, owned: bool = True) -> None:
    await own(store, [POISON, FOREIGN, FINE])
    owner = store.store if owned else store.store.other
    row = replace(row_of(key, (0, 7), owner), payload=b"\xff" * 5, schema_version=schema_version)
    await store.transfers.apply([record_of(row)])


def order(key: str, content: Sandbox | None = None, *, as_kept: bool = False) -> pb.RepairRecordRequest:
    request = pb.RepairRecordRequest(key=key, request_id=str(uuid4()))
    if content is not None:
        payload = content.SerializeToString(deterministic=True)
        request.content.CopyFrom(
            pb.RepairRecordRequest.Content(payload=payload, schema_version=2, live=True, as_kept=as_kept)
        )
    return request


def good(name: str = "") -> Sandbox:
    return Sandbox(name=name, account="acme", spec=SandboxSpec(image="image:1"))


@pytest.mark.parametrize("schema_version", [1, 2])
async def test_a_corrupt_record_is_shown_with_its_bytes_and_the_reason(
    store: StorePorts, clock: ManualClock, schema_version: int
) -> None:
    await poisoned(store, POISON, schema_version=schema_version)
    repair = repair_of(store, clock)
    found = await repair.ExamineRecord(pb.ExamineRecordRequest(key=POISON), NO_CONTEXT)
    assert (found.record.payload, found.bytes) == (b"\xff" * 5, 5)
    assert "not a sandbox" in found.corrupt
    await put(store, FINE, "r1", "fine")
    assert (await repair.ExamineRecord(pb.ExamineRecordRequest(key=FINE), NO_CONTEXT)).corrupt == ""
    assert not (await repair.ExamineRecord(pb.ExamineRecordRequest(key="sandboxes/no"), NO_CONTEXT)).HasField("record")


@pytest.mark.parametrize("key", [POISON, FOREIGN])
async def test_a_deleted_corrupt_record_is_a_tombstone_that_the_other_store_takes_from_the_log(
    store: StorePorts, across: StorePorts, clock: ManualClock, key: str
) -> None:
    await poisoned(store, key)
    request = order(key)
    repair = repair_of(store, clock)
    answer = await repair.RepairRecord(request, NO_CONTEXT)
    assert answer.version == version_to_pb(Version(0, 8))
    assert (await repair.RepairRecord(request, NO_CONTEXT)).version == answer.version, "it is a retry"
    row = (await store.records.read(key)).row
    assert row is not None and (row.live, row.payload, row.version) == (False, b"", (0, 8))
    (entry,) = await store.outbox.pull(10, 0)
    assert [one.principal for one in record_of_event(entry.event).served] == ["operator"]
    taken = Arrivals(across, SandboxOperations().check_row).read(Event(key, entry.event, ()))
    await across.transfers.apply([taken])
    assert (await across.records.read(key)).row == row
    with pytest.raises(RecordReadable):
        await repair.RepairRecord(order(key), NO_CONTEXT)


async def test_a_replaced_corrupt_record_is_listed_again(store: StorePorts, clock: ManualClock) -> None:
    await poisoned(store, POISON)
    await repair_of(store, clock).RepairRecord(order(POISON, good()), NO_CONTEXT)
    (listed,) = await store.records.page(Page(Filter(equals=(("account", "acme"),))))
    sandbox = Sandbox.FromString(listed.row.payload)
    assert (sandbox.name, sandbox.revision, sandbox.etag, sandbox.state) == (POISON, 8, '"0-8"', Sandbox.STATE_PENDING)
    assert sandbox.uid and sandbox.HasField("create_time") and sandbox.HasField("update_time")


async def test_a_repair_is_refused_for_a_readable_record_another_owner_no_record_and_a_bad_content(
    store: StorePorts, clock: ManualClock
) -> None:
    repair = repair_of(store, clock)
    await poisoned(store, POISON, owned=False)
    await put(store, FINE, "r1", "fine")
    depth = await store.outbox.pull(10, 0)
    for refused, error in (
        (order(FINE), RecordReadable),
        (order(POISON), NotOwner),
        (order("sandboxes/no"), NoRecord if await _owns(store, "sandboxes/no") else NotOwner),
        (order(FOREIGN, good()), InvalidField),
        (order(POISON, good("sandboxes/another")), InvalidField),
        (order(POISON, Sandbox()), InvalidField),
    ):
        with pytest.raises(error):
            await repair.RepairRecord(refused, NO_CONTEXT)
    assert await store.outbox.pull(10, 0) == depth


async def test_a_repair_exceeds_a_newer_corrupt_record_of_the_other_store(
    store: StorePorts, clock: ManualClock
) -> None:
    await own(store, [FINE])
    await put(store, FINE, "r1", "fine")
    kept = (await store.records.read(FINE)).row
    assert kept is not None
    request = order(FINE, Sandbox.FromString(kept.payload), as_kept=True)
    request.above.CopyFrom(version_to_pb(Version(0, 40)))
    answer = await repair_of(store, clock).RepairRecord(request, NO_CONTEXT)
    assert answer.version == version_to_pb(Version(0, 41))
    assert (await store.records.read(FINE)).version == (0, 41)


async def _owns(store: StorePorts, key: str) -> bool:
    return (await store.records.read(key)).owner is store.store

"""The flows of a migration's end on stores in memory: what is exported and recorded, and the digests of both stores."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.errors import InvalidField
from libs.ownership.model import Record, Row, Store, Version, bucket_of
from libs.pb.baton.record.v1 import record_pb2
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.control.memory import MemoryControlStore
from services.router.core.migration_certificate import CertificateOpen
from services.router.core.phase import Setting
from services.router.core.row_sum import Sum, with_records
from services.router.flows.jobs.bucket_comparison import BucketComparison, BucketPair
from services.router.flows.jobs.chronicle import Chronicle
from services.router.flows.jobs.cold_backup import BackupUnfit, Export
from services.router.flows.jobs.ending import Ending, RouterFacts
from services.router.flows.jobs.kind import Position
from services.router.flows.jobs.reconcile_job import DEEP, Reconcile
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.migration import MAX_REASON_CHARACTERS, Decision
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import System, running_system

ANN = Decision("ann", "the end")


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(feeds=False, mover=False) as running:
        yield running


async def put(system: System, key: str, revision: int = 1, *, at: Store = Store.A, owner: Store = Store.B) -> None:
    version = Version(0, revision)
    row = Row(key, version, owner, version, live=True, payload=b"", schema_version=1)
    await system.ports(at).transfers.apply([Record(row, (), owner, 0.0)])


async def test_an_export_has_all_records_of_a_and_the_sum_of_its_own_digests(system: System) -> None:
    for number in range(30):
        await put(system, f"shelf/r/{number}")
    export = Export(system.stores)
    records: list[record_pb2.Record] = []
    async for page in export.pages():
        records += page
    assert len({record.key for record in records}) == 30
    assert export.total == with_records(Sum(), records) != Sum()


async def test_a_bucket_that_changes_meanwhile_is_exported_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(system, "shelf/r/1")
    ask, changed = Export._digests, False

    async def and_change(self: Export, buckets: Any) -> dict[int, Sum]:
        nonlocal changed
        found = await ask(self, buckets)
        if bucket_of("shelf/r/1") in found and not changed:
            changed = True
            await put(system, "shelf/r/1", 2)
        return found

    monkeypatch.setattr(Export, "_digests", and_change)
    export = Export(system.stores)
    (page,) = [page async for page in export.pages()]
    assert [record.version.revision for record in page] == [2]
    assert export.total == with_records(Sum(), page)


async def test_a_row_that_was_edited_is_not_backed_up(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(system, "shelf/r/1")

    async def other(self: Export, buckets: Any) -> dict[int, Sum]:
        return {bucket_of("shelf/r/1"): Sum(1, 7)} if bucket_of("shelf/r/1") in buckets else {}

    monkeypatch.setattr(Export, "_digests", other)
    monkeypatch.setattr("services.router.flows.jobs.cold_backup.PAUSE_SECONDS", 0.0)
    with pytest.raises(BackupUnfit, match="another digest than its records"):
        [page async for page in Export(system.stores).pages()]


async def test_digests_are_added_up_when_buckets_have_settled(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    for store in Store:
        for number in range(20):
            await put(system, f"shelf/r/{number}", at=store)
    control = MemoryControlStore()
    job = Reconcile(system.stores, Transfer(system.stores), system.log, SystemClock(), control)
    asked, ask = 0, BucketComparison.digests

    async def changing(self: BucketComparison, buckets: Any = (), **how: Any) -> list[BucketPair]:
        """Each bucket differs at the first look, and one of them for some looks more."""
        nonlocal asked
        found = await ask(self, buckets, **how)
        asked += 1
        busy = bucket_of("shelf/r/0")
        return [
            pair._replace(a=_other(pair.a)) if asked <= (40 if pair.bucket == busy else 33) else pair for pair in found
        ]

    monkeypatch.setattr(BucketComparison, "digests", changing)
    report = await finished(job)
    truth = Sum()
    for bucket in [await system.stores[Store.A].replication.ExportRecords(pb.ExportRecordsRequest(limit=100))]:
        truth = with_records(truth, bucket.records)
    assert report["digests"] == {"A": truth.text, "B": truth.text}
    assert (report["deep"], report["changing"], report["left"]) == (True, 0, 0)
    kept = json.loads(await control.remembered(DEEP) or "")
    assert (kept["digests"], kept["records"], "differences" in kept) == (report["digests"], 20, False)


def _other(bucket: pb.DigestBucketsResponse.Bucket) -> pb.DigestBucketsResponse.Bucket:
    return pb.DigestBucketsResponse.Bucket(
        bucket=bucket.bucket, records=bucket.records, digest=1, content=1, envelope=bucket.envelope
    )


async def finished(job: Reconcile) -> dict[str, Any]:
    at = Position({"deep": "yes"}, b"", 1024)
    while not (step := await job.step(at)).finished:
        at = replace(at, checkpoint=step.checkpoint, report=step.report or at.report)
    found: dict[str, Any] = json.loads(step.report or "")
    return found


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    async with running_controlled_system(feeds=False, mover=False) as running:
        yield running


def ending(controlled: ControlledSystem) -> Ending:
    flows = controlled.flows
    chronicle = Chronicle(controlled.store, flows.jobs, flows.observer, list, flows.clock, "router-1")
    router = RouterFacts("router-1", "toy.Shelf", 100, direct_routes=False, ring=lambda: None)
    stores, cache = controlled.system.stores, flows.cache
    return Ending(chronicle, flows.migration, cache, stores, flows.observer, flows.evidence, flows.clock, router)


async def test_an_open_certificate_exports_nothing(controlled: ControlledSystem) -> None:
    with pytest.raises(CertificateOpen, match="phase"):
        [part async for part in ending(controlled).export(ANN)]
    assert await controlled.store.load() == Setting(generation=1)


async def test_a_file_that_is_not_the_last_export_is_not_recorded(controlled: ControlledSystem) -> None:
    with pytest.raises(InvalidField, match="64 hexadecimal digits"):
        await ending(controlled).record(ANN, "a.backup", "z" * 64, Sum(1, 7))
    with pytest.raises(BackupUnfit, match="nothing was recorded"):
        await ending(controlled).record(ANN, "a.backup", "0" * 64, Sum(1, 7))
    exported = {"records": 1, "digest": f"{7:032x}", "ended": 1_700_000_000}
    await controlled.store.remember("backup export", json.dumps(exported))
    talkative = Decision("ann", "x" * MAX_REASON_CHARACTERS)
    backup = await ending(controlled).record(talkative, "a.backup", "0" * 64, Sum(1, 7))
    assert (backup.actor, backup.ended_seconds) == ("ann", 1_700_000_000), "it is as old as its export"
    newest, *_ = await controlled.store.journal(1)
    assert (newest.action, "a.backup: 1 records" in newest.reason) == ("backup recorded", True)

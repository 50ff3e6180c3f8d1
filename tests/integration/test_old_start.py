"""The first start on a file of the old program: the process serves at once, is killed and goes on; then it is left."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import grpc

from libs.clock import SystemClock
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.pb.sandbox.v1 import sandbox_service_pb2 as pb
from libs.rpc.errors import reason_of
from libs.sandboxes.schema import METADATA
from services.router.flows.jobs.backfill import Backfill
from services.router.flows.jobs.kind import Position
from services.router.flows.stores import StoreClient
from tests.fixtures.make_old_database import TABLE, clean_rows
from tests.integration.processes import Service, run_to_end, running
from tests.system.store import refusal
from tests.waiting import eventually

A = "simple_mcp"
ROWS = 15_000
SPOKEN = ((METADATA, "2"),)
PATIENCE_SECONDS = 240.0
CALL_SECONDS = 30.0
"""Deadline of a call, the longest that a listener allows. Without one it has five seconds, in which a busy machine may
not read a page while it completes rows."""


def make(path: Path) -> list[str]:
    rows = clean_rows()
    made = [(f"sb-{number:06}", *rows[number % len(rows)][1:]) for number in range(ROWS)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(TABLE)
        connection.executemany(f"INSERT INTO sandboxes VALUES ({', '.join('?' * 12)})", made)
        connection.commit()
    return [f"sandboxes/{row[0]}" for row in made]


async def backfill(stores: Mapping[Store, StoreClient]) -> int:
    """Every page of the job. Returns how many records it copied."""
    job, at = Backfill(stores, SystemClock()), Position({"to": "B"}, b"", 100_000)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            step = await job.step(at)
            at = replace(at, checkpoint=step.checkpoint, done=at.done + step.done)
            if step.finished:
                return at.done


async def left(service: Service) -> int:
    status = await service.replication.GetStatus(rpb.GetStatusRequest(), timeout=CALL_SECONDS)
    assert (status.serving, status.records, status.owned_records) == (True, ROWS, ROWS)
    return int(status.unfilled_records)


async def is_complete(service: Service) -> bool:
    """No row is left, and the store has noticed it."""
    if await left(service):
        return False
    try:
        await service.replication.DigestBuckets(rpb.DigestBucketsRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if reason_of(error)[0] != "STILL_FILLING":
            raise
        return False
    return True


async def use(service: Service, names: Sequence[str], word: str) -> None:
    """Reads, a list and a write of rows all over the file."""
    for name in (*names[:: ROWS // 7], names[-1]):
        found = await service.client.GetSandbox(pb.GetSandboxRequest(name=name), metadata=SPOKEN, timeout=CALL_SECONDS)
        change = pb.UpdateSandboxRequest(sandbox=found, request_id=str(uuid4()))
        change.sandbox.spec.image = word
        change.update_mask.paths.append("spec.image")
        changed = await service.client.UpdateSandbox(change, metadata=SPOKEN, timeout=CALL_SECONDS)
        assert (changed.spec.image, changed.revision) == (word, found.revision + 1)
    last: list[str] = []
    async for page in pages(service):
        assert page == sorted(page) and (not last or last[-1] < page[0])
        last += page
    assert last == names


async def pages(service: Service) -> AsyncIterator[list[str]]:
    token = ""
    while True:
        request = pb.ListSandboxesRequest(page_size=1000, page_token=token)
        answer = await service.client.ListSandboxes(request, metadata=SPOKEN, timeout=CALL_SECONDS)
        yield [sandbox.name for sandbox in answer.sandboxes]
        token = answer.next_page_token
        if not token:
            return


async def test_an_old_file_is_served_filled_and_left(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    names = make(path)
    settings = {"event_log": f"sqlite:///{tmp_path}/log.db", "database": path}
    async with running(A, **settings) as service:
        assert await left(service) > 0, "it serves before all rows are completed"
        await use(service, names, "one")
        waits = await refusal(service.replication.DigestBuckets(rpb.DigestBucketsRequest(), timeout=CALL_SECONDS))
        assert (waits.code(), reason_of(waits)[0]) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_FILLING")
        assert f"of {ROWS} old rows completed" in str(waits.details())
        service.signal(signal.SIGKILL)
        await service.ended()
    async with running(A, **settings) as service:
        await use(service, names, "two")

        async def complete() -> bool:
            return await is_complete(service)

        await eventually(complete, PATIENCE_SECONDS)
        digests = await service.replication.DigestBuckets(rpb.DigestBucketsRequest(), timeout=CALL_SECONDS)
        assert sum(bucket.records for bucket in digests.buckets) == ROWS
        await use(service, names, "three")
    code, errors = await run_to_end(A, settings, "leave")
    assert code == 0, errors
    assert f"is the old program's again: {ROWS} rows" in errors
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO sandboxes VALUES ('x', 'a', 'RUNNING', 'i', '[]', '{}', 1, 1, 1, '{}', 1, 1)")
        changed = connection.execute("UPDATE sandboxes SET state = 'STOPPED' WHERE id = 'sb-000000'").rowcount
        assert changed == 1
        assert connection.execute("SELECT count(*) FROM sandboxes WHERE image = 'three'").fetchone()[0] >= 7


async def test_a_backfill_copies_old_rows_before_they_are_completed(tmp_path: Path) -> None:
    path, other = tmp_path / "old.db", tmp_path / "b.db"
    names = make(path)
    settings = {"event_log": f"sqlite:///{tmp_path}/log.db"}
    async with (
        running(A, **settings, database=path) as a,
        running("service_layer", **settings, database=f"sqlite:///{other}") as b,
    ):
        assert await left(a) > 0
        stores = {Store.A: StoreClient(Store.A, a.internal, None), Store.B: StoreClient(Store.B, b.internal, None)}
        assert await backfill(stores) == ROWS
        rows = (await b.replication.ReadRecords(rpb.ReadRecordsRequest(keys=names[-50:]), timeout=CALL_SECONDS)).rows
        assert [row.record.version.revision for row in rows] == [1] * 50

"""An edit by hand beside a store shows in the digests that are made anew, whichever column it changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.backend.comparison import Comparison
from libs.ownership.model import bucket_of
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.sandboxes.operations import SandboxOperations
from libs.store.memory import MemoryStore
from libs.store.port import StorePorts
from tests.contracts.store_adapters import SQLITE_A, Adapter, own, put, record_of, row_of

KEY, OTHER = "sandboxes/a", "sandboxes/b"
EDITS = {
    "live": "live = NOT live",
    "account": "account = 'eve'",
    "state": "state = 'FAILED'",
    "labels": '{labels} = \'{{"team":"blue"}}\'',
    "write_revision": "write_revision = write_revision - 1",
    "write_term": "write_term = write_term + 1",
    "schema_version": "schema_version = schema_version + 1",
    "bases": "bases = '0.1'",
    "lease": "lease = 'mallory 1'",
    "payload": "payload = {nothing}",
    "owner": "owner = CASE WHEN owner = 'A' THEN 'B' ELSE 'A' END",
}


@pytest.fixture
def place(adapter: Adapter, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("store_dsn") if adapter.postgres else tmp_path / "store.db"


async def edit(adapter: Adapter, place: Any, change: str, key: str) -> None:
    """The version stays; triggers do not run."""
    if adapter.postgres:
        connection = await asyncpg.connect(place)
        await connection.execute("SET session_replication_role = replica")
        change = change.format(labels="labels", nothing="''::bytea")
        await connection.execute(f"UPDATE record SET {change} WHERE key = '{key}'")
        await connection.close()
        return
    table, labels = ("sandboxes", "metadata") if adapter is SQLITE_A else ("record", "labels")
    with closing(sqlite3.connect(place)) as file:
        file.executescript(
            f"DROP TRIGGER {table}_version;"
            f"UPDATE {table} SET {change.format(labels=labels, nothing='zeroblob(0)')} WHERE key = '{key}'"
        )


def comparison(store: StorePorts) -> Comparison:
    return Comparison(SandboxOperations(), store)


async def deep(store: StorePorts, key: str = KEY) -> pb.DigestBucketsResponse.Bucket:
    (found,) = (await comparison(store).digests([bucket_of(key)], deep=True)).buckets
    return found


async def look(store: StorePorts, key: str = KEY) -> pb.LookAtRecordsResponse.Look:
    (found,) = (await comparison(store).looks(pb.LookAtRecordsRequest(keys=[key]))).looks
    return found


async def filled(store: StorePorts) -> None:
    await own(store, [KEY, OTHER])
    for key in (KEY, OTHER):
        await put(store, key, "r1", "one", account="ann", state="RUNNING", label="team:red")
        await put(store, key, "r2", "two", account="ann", state="RUNNING", label="team:red")


@pytest.mark.parametrize("column", EDITS)
async def test_an_edit_of_any_column_shows(store: StorePorts, adapter: Adapter, place: Any, column: str) -> None:
    if isinstance(store, MemoryStore):
        pytest.skip("nobody else writes to it")
    await filled(store)
    before, seen = await deep(store), await look(store)
    assert before.content == before.digest and seen.content == seen.digest
    await edit(adapter, place, EDITS[column], KEY)
    after, now = await deep(store), await look(store)
    assert (after.digest, after.records) == (before.digest, before.records), "the kept digest stays as it was"
    assert (after.content, after.envelope) != (before.content, before.envelope)
    assert (now.content, now.envelope) != (seen.content, seen.envelope)


async def test_two_edits_of_one_kind_do_not_hide_each_other(store: StorePorts, adapter: Adapter, place: Any) -> None:
    if isinstance(store, MemoryStore):
        pytest.skip("nobody else writes to it")
    await own(store, [KEY])
    keys = [key for key in (f"sandboxes/{number}" for number in range(5000)) if bucket_of(key) == bucket_of(KEY)][:2]
    for key in keys:
        await put(store, key, "r1", "one", account="ann")
    before = await deep(store)
    for key in keys:
        await edit(adapter, place, "account = 'eve'" if key == keys[0] else "account = 'mallory'", key)
        if adapter.sqlite and key == keys[0]:
            with closing(sqlite3.connect(place)) as file:
                table = "sandboxes" if adapter is SQLITE_A else "record"
                file.execute(f"CREATE TRIGGER {table}_version BEFORE UPDATE ON {table} BEGIN SELECT 1; END")
    assert (await deep(store)).content not in (before.content, before.digest)


async def test_equal_records_have_equal_digests_in_every_store(store: StorePorts) -> None:
    """Whatever the adapter keeps beside the payload."""
    row = row_of(KEY, (0, 4), store.store.other, "w", account="ann", state="RUNNING", label="a:b", written="0-3")
    await store.transfers.apply([record_of(row)])
    found = await look(store)
    assert (found.digest, found.content, found.envelope) == (row.digest, row.digest, row.envelope_digest)


async def test_a_brief_look_has_version_and_owner_only(store: StorePorts) -> None:
    await filled(store)
    request = pb.LookAtRecordsRequest(keys=[KEY, "sandboxes/none"], brief=True)
    (found,) = (await comparison(store).looks(request)).looks
    whole = await look(store)
    expected = pb.LookAtRecordsResponse.Look(key=KEY, version=whole.version, owner=whole.owner)
    assert found == expected

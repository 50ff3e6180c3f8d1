"""The old service's file becomes a store in place, whatever years have left in it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest

from libs.clock import ManualClock
from libs.contract.pages import Filter, Page
from libs.ownership.model import BUCKETS, BucketOwner, Record, Store, bucket_of
from libs.pb.sandbox.v1 import sandbox_pb2 as pb
from libs.pb.sandbox.v1.sandbox_pb2 import FlatSandbox
from libs.sandboxes.schema import SCHEMAS
from services.simple_mcp.store import NotTheOldDatabase, initialise, open_store
from services.simple_mcp.store.flat import OLD_TABLE
from tests.contracts.store_adapters import everything, put, row_of, sandbox
from tests.fixtures.make_old_database import FILE, clean_rows, dirty_rows, make

CLOCK = ManualClock()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(FILE, tmp_path / "old.db"))


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def flat(path: Path) -> dict[str, dict[str, Any]]:
    """The flat rows by key."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return {row["key"]: dict(row) for row in connection.execute("SELECT * FROM sandboxes")}


async def migrated(path: Path) -> dict[str, tuple[Record, pb.Sandbox]]:
    async with open_store(path, CLOCK) as store:
        return {record.row.key: (record, SCHEMAS.model_of(record.row)) for record in await everything(store)}


def test_the_committed_file_is_what_the_script_makes(tmp_path: Path) -> None:
    make(tmp_path / "made.db")
    assert dump(tmp_path / "made.db") == dump(FILE)


async def test_every_old_row_is_a_record_of_a_in_its_first_version(old: Path) -> None:
    found = await migrated(old)
    assert len(found) == len(clean_rows()) + len(dirty_rows())
    for key, (record, message) in found.items():
        row = record.row
        assert (row.version, row.write_version, row.owner, row.live, row.bases) == ((0, 1), (0, 1), Store.A, True, ())
        assert (message.name, message.uid) == (key, str(uuid5(NAMESPACE_URL, key)))
        assert (message.revision, message.etag, message.schema_version, row.schema_version) == (1, '"0-1"', 1, 1)
        assert record.served == ()


async def test_a_clean_row_keeps_every_value(old: Path) -> None:
    found = await migrated(old)
    for name, account, state, image, command, env, cpu, memory, timeout, labels, created, updated in clean_rows():
        _, message = found[f"sandboxes/{name}"]
        assert message.account == account
        assert pb.Sandbox.State.Name(message.state) == f"STATE_{state}"
        assert message.spec.image == image
        assert list(message.spec.command) == json.loads(str(command or "[]"))
        assert dict(message.spec.env) == json.loads(str(env or "{}"))
        assert message.spec.cpu_millis == (cpu or 0) * 1000  # type: ignore[operator]
        assert message.spec.memory_mib == (memory or 0)
        assert message.spec.HasField("timeout") == (timeout is not None)
        assert message.spec.timeout.seconds == (timeout or 0)
        assert dict(message.labels) == json.loads(str(labels or "{}"))
        for time, seconds in ((message.create_time, created), (message.update_time, updated)):
            assert time.ToNanoseconds() / 1e9 == pytest.approx(seconds or 0, abs=1e-6)
        assert not message.annotations


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("dirty-env", {"env": '{"PORT": 80'}, {}),
        ("dirty-metadata", {"metadata": "team=red"}, {}),
        ("dirty-command", {"command": '{"not": "a list"}'}, {}),
        ("dirty-state", {"state": "zombie"}, {"state": 0}),
        ("dirty-case", {"state": " running"}, {"state": pb.Sandbox.STATE_RUNNING}),
        ("dirty-numbers", {"cpu": "two", "memory_mb": "-1", "timeout_s": "1.5"}, {}),
        ("dirty-times", {"created_at": "yesterday", "updated_at": "1e+300"}, {}),
        ("dirty-scalars", {"env": '{"PORT": 8080, "DEBUG": true}', "command": '["sleep", 10]'}, {}),
        ("dirty-surrogate", {"metadata": '{"team": "\\ud800"}'}, {}),
        ("Dirty Name/ünïcode", {}, {}),
        ("row-302", {"id": "None"}, {}),
        ("row-301", {"id": ""}, {}),
        ("row-303", {"id": "x" * 300}, {}),
        ("dirty-blob", {"image": "\ufffd\ufffd"}, {}),
    ],
)
async def test_a_dirty_value_is_kept_as_an_annotation(
    old: Path, name: str, raw: Mapping[str, str], expected: Mapping[str, object]
) -> None:
    _, message = (await migrated(old))[f"sandboxes/{name}"]
    assert dict(message.annotations) == {f"baton.dev/raw-{column}": text for column, text in raw.items()}
    for field, value in expected.items():
        assert getattr(message, field) == value


async def test_what_can_be_understood_of_a_dirty_value_is_taken(old: Path) -> None:
    _, message = (await migrated(old))["sandboxes/dirty-scalars"]
    assert dict(message.spec.env) == {"PORT": "8080", "DEBUG": "true"}
    assert list(message.spec.command) == ["sleep", "10"]


async def test_a_zero_in_a_text_is_replaced_and_its_text_kept(tmp_path: Path) -> None:
    path = tmp_path / "zeros.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(OLD_TABLE)
        row = ("z\0", "an\0n", "RUNNING", "img", '["a\\u0000"]', "{}", 1, 1, 1, '{"k": "v\\u0000"}', 1, 1)
        connection.execute(f"INSERT INTO sandboxes VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()
    _, message = (await migrated(path))["sandboxes/row-1"]
    assert (message.account, dict(message.labels), list(message.spec.command)) == (
        "an\ufffdn",
        {"k": "v\ufffd"},
        ["a\ufffd"],
    )
    assert dict(message.annotations) == {
        "baton.dev/raw-id": "z\0",
        "baton.dev/raw-account": "an\0n",
        "baton.dev/raw-command": '["a\\u0000"]',
        "baton.dev/raw-metadata": '{"k": "v\\u0000"}',
    }


async def test_all_buckets_are_owned_by_a_and_there_are_no_events(old: Path) -> None:
    async with open_store(old, CLOCK) as store:
        assert await store.transfers.bucket_owners() == [
            BucketOwner(bucket, 0, 1, Store.A) for bucket in range(BUCKETS)
        ]
        assert await store.outbox.pull(10, 0) == []
        digests = await store.inspection.digests()
        rows = {record.row.key: record.row for record in await everything(store)}
    for digest in digests:
        own = [row for key, row in rows.items() if bucket_of(key) == digest.bucket]
        total = 0
        for row in own:
            total ^= row.digest
        assert (digest.records, digest.owned, digest.digest) == (len(own), len(own), total)


async def test_old_rows_are_found_by_state_and_label(old: Path) -> None:
    wanted = [
        f"sandboxes/{row[0]}"
        for row in clean_rows()
        if row[2] == "RUNNING" and json.loads(str(row[9] or "{}")) != {} and json.loads(str(row[9]))["team"] == "grün"
    ]
    async with open_store(old, CLOCK) as store:
        page = Page(Filter((("state", "RUNNING"),), (("team", "grün"),)), limit=500)
        assert [listed.row.key for listed in await store.records.page(page)] == sorted(wanted)
    assert wanted


async def test_a_second_start_changes_nothing(old: Path) -> None:
    first = await migrated(old)
    async with open_store(old, CLOCK):
        pass  # The empty old table goes.
    before = dump(old)
    again = await migrated(old)
    assert {key: record.row for key, (record, _) in again.items()} == {
        k: record.row for k, (record, _) in first.items()
    }
    assert dump(old) == before


async def test_flat_columns_follow_the_record(old: Path) -> None:
    key = "sandboxes/sb-0001"
    async with open_store(old, CLOCK) as store:
        await put(store, key, "r1", "one", state="STOPPED", account="ann", label="k:v")
        await put(store, "sandboxes/new", "r2", "two", state="RUNNING", deleted="yes")
        await store.transfers.release(["sandboxes/stub"], Store.B, create=True)
        rows = flat(old)
        assert (rows[key]["id"], rows[key]["state"], rows[key]["metadata"]) == ("sb-0001", "STOPPED", '{"k":"v"}')
        assert (rows[key]["revision"], rows[key]["payload"]) == (
            2,
            sandbox(key, "one", state="STOPPED", account="ann", label="k:v"),
        )
        assert (rows["sandboxes/new"]["id"], rows["sandboxes/new"]["live"]) == ("new", 0)
        assert (rows["sandboxes/stub"]["state"], rows["sandboxes/stub"]["owner"]) == ("", "B")


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", sandbox("sandboxes/later", state="RUNNING", account="ann")])
async def test_an_opaque_payload_leaves_the_flat_columns_empty(old: Path, payload: bytes) -> None:
    """Also one that could be read by chance: version 99 may mean something else by the same fields."""
    row = row_of("sandboxes/later", (0, 3), Store.B)
    opaque = type(row)(row.key, row.version, row.owner, row.write_version, True, payload, 99)
    async with open_store(old, CLOCK) as store:
        await store.transfers.apply([Record(opaque, (), Store.B, 1.0)])
        assert (await store.records.read(row.key)).row == opaque
        columns = flat(old)[row.key]
        assert (columns["image"], columns["account"], columns["state"]) == ("", "", "UNSPECIFIED")


async def test_a_record_that_the_old_program_made_is_kept_in_its_flat_version(old: Path) -> None:
    async with open_store(old, CLOCK) as store:
        row = (await store.records.read("sandboxes/sb-0001")).row
        assert row is not None
        assert (row.schema_version, FlatSandbox.FromString(row.payload).image) == (1, flat(old)[row.key]["image"])
        assert not pb.Sandbox.FromString(row.payload).spec.image


@pytest.mark.parametrize("content", [None, b"", b"no database, " * 100])
async def test_what_is_not_the_old_database_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "old.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotTheOldDatabase, match="simple_mcp init"):
        async with open_store(path, CLOCK):
            pass
    assert (path.read_bytes() if path.exists() else None) == content


async def test_a_database_without_the_old_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (id TEXT)")
    with pytest.raises(NotTheOldDatabase, match="no table `sandboxes`"):
        async with open_store(path, CLOCK):
            pass


async def test_an_initialised_file_is_empty_and_owns_all_names(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    initialise(path)
    async with open_store(path, CLOCK) as store:
        assert await store.inspection.census() == (0, 0, BUCKETS, 0)
    with pytest.raises(NotTheOldDatabase, match="exists"):
        initialise(path)

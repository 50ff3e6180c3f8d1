"""A snapshot of a store's file: one moment, while the store goes on, and nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from libs.clock import ManualClock
from libs.errors import BatonError, DiskFull
from libs.ownership.model import Store
from libs.sandboxes.audit import SandboxAudit
from libs.store import sqlite_snapshot
from libs.store.snapshots import Looked, SnapshotGone
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_snapshot import SqliteSnapshots
from services.simple_mcp.store import initialise, open_store
from services.simple_mcp.store.flat import LAYOUT
from tests.contracts.store_adapters import put, record_of, row_of, word_of
from tests.fixtures.make_old_database import FILE
from tests.waiting import eventually

CLOCK = ManualClock()


@asynccontextmanager
async def snapshots(path: Path, **options: Any) -> AsyncIterator[SqliteSnapshots]:
    made = SqliteSnapshots(path, LAYOUT, SandboxAudit().folded, CLOCK, **options)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    initialise(tmp_path / "a.db")
    async with open_store(tmp_path / "a.db", CLOCK) as opened:
        yield opened


async def take(of: SqliteSnapshots, name: str = "one") -> None:
    async with asyncio.timeout(30):
        while not (await of.take(name)).ready:
            pass


async def everything(of: SqliteSnapshots, name: str = "one", limit: int = 7) -> list[Looked]:
    looked: list[Looked] = []
    while page := await of.page(name, looked[-1].key if looked else "", limit):
        looked += page
    return looked


def beside(path: Path) -> set[str]:
    """Files that are not the store's own."""
    return {file.name for file in path.parent.iterdir()} - {path.name + end for end in ("", "-wal", "-shm", ".lock")}


async def test_a_snapshot_shows_one_moment_while_the_store_goes_on(store: SqliteStore, tmp_path: Path) -> None:
    """Two records are always written one after the other: the second one is never ahead of the first one."""
    path = tmp_path / "a.db"
    pair = ("sandboxes/first", "sandboxes/second")
    padding = [record_of(row_of(f"sandboxes/p-{number}", (0, 1), Store.A, padding="20000")) for number in range(300)]
    await store.transfers.apply(padding)
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            for key in pair:
                await put(store, key, f"{key}{written}", str(written))
            written += 1

    writing = asyncio.create_task(write())
    try:
        await eventually(lambda: written > 3)
        before = written
        async with snapshots(path) as some:
            taken = await some.take("one")
            await take(some)
            assert taken.total_bytes > 4_000_000
            await eventually(lambda: written > before + 3)
            words = {one.key: word_of(one.row.payload) for one in await everything(some, limit=100) if one.row}
            first, second = (int(words[key]) for key in pair)
            assert before - 2 <= second <= first <= second + 1
            assert len(words) == 302
            again = {one.key: word_of(one.row.payload) for one in await everything(some, limit=100) if one.row}
            assert again == words
    finally:
        writing.cancel()
        await asyncio.wait([writing])


async def test_what_is_written_before_the_copy_but_after_its_moment_is_not_in_it(
    store: SqliteStore, tmp_path: Path
) -> None:
    await put(store, "sandboxes/x", "r", "w")

    def write_and_look(directory: Path) -> int:
        with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
            connection.execute("UPDATE sandboxes SET revision = revision + 1")
        return shutil.disk_usage(directory).free

    async with snapshots(tmp_path / "a.db", free_bytes=write_and_look) as some:
        await take(some)
        (one,) = await everything(some)
    assert one.row is not None and one.row.version.revision == 1
    found = (await store.records.read("sandboxes/x")).row
    assert found is not None and found.version.revision == 2


async def test_a_snapshot_has_no_name_once_it_is_there(store: SqliteStore, tmp_path: Path) -> None:
    await put(store, "sandboxes/x", "r", "w")
    async with snapshots(tmp_path / "a.db") as some:
        await take(some)
        assert beside(tmp_path / "a.db") == set()
        assert [one.key for one in await everything(some)] == ["sandboxes/x"]


async def test_a_half_copy_of_a_process_that_was_killed_is_removed_at_the_start(tmp_path: Path) -> None:
    path = Path(shutil.copy(FILE, tmp_path / "a.db"))
    for end in ("", "-wal", "-shm", "-journal"):
        (tmp_path / f"a.db.audit{end}").write_bytes(b"half")
    async with snapshots(path):
        assert beside(path) == set()


async def test_a_disk_without_room_is_refused_before_anything_is_written(store: SqliteStore, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    free = sqlite_snapshot.RESERVE_BYTES
    async with snapshots(path, free_bytes=lambda directory: free) as some:
        with pytest.raises(DiskFull, match="make room"):
            await take(some)
        assert beside(path) == set()
        free += path.stat().st_size + 1_000_000
        await take(some)


async def test_what_fails_on_the_way_leaves_nothing_and_may_be_asked_for_again(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any, connection: sqlite3.Connection, copy: Any) -> None:
        assert beside(tmp_path / "a.db")
        raise DiskFull

    async with snapshots(tmp_path / "a.db") as some:
        with monkeypatch.context() as broken:
            broken.setattr(SqliteSnapshots, "_prepare", failing)
            with pytest.raises(DiskFull):
                await take(some)
            assert beside(tmp_path / "a.db") == set()
        await take(some)


async def test_there_is_one_snapshot_and_only_who_took_it_reads_it(store: SqliteStore, tmp_path: Path) -> None:
    async with snapshots(tmp_path / "a.db") as some:
        with pytest.raises(SnapshotGone):
            await some.page("one", "", 1)
        await take(some)
        await take(some, "two")
        with pytest.raises(SnapshotGone):
            await some.page("one", "", 1)
        await some.drop("one")
        assert await some.page("two", "", 1) == []
        await some.drop("two")
        with pytest.raises(SnapshotGone):
            await some.page("two", "", 1)


async def test_a_snapshot_that_nobody_asks_for_is_removed(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_snapshot, "IDLE_SECONDS", 0.05)

    async def gone() -> bool:
        return "none" in repr(some)

    async with snapshots(tmp_path / "a.db") as some:
        await take(some)
        await eventually(gone)
        with pytest.raises(SnapshotGone):
            await some.page("one", "", 1)


async def test_a_copy_that_nobody_wants_any_more_is_stopped(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take long: the copy goes page by page, and at the first one the snapshot is dropped."""
    monkeypatch.setattr(sqlite_snapshot, "_STEP_PAGES", 1)
    monkeypatch.setattr(sqlite_snapshot, "_FIRST_LOOK_SECONDS", 0.0)
    await store.transfers.apply(
        [record_of(row_of(f"sandboxes/p-{number}", (0, 1), Store.A, padding="20000")) for number in range(300)]
    )
    async with snapshots(tmp_path / "a.db") as some:
        assert not (await some.take("one")).ready
        await some.drop("one")
        assert beside(tmp_path / "a.db") == set()
        with pytest.raises(SnapshotGone):
            await some.page("one", "", 1)


async def kinds(path: Path) -> dict[str, set[str]]:
    async with snapshots(path) as some:
        await take(some)
        return {one.key: {finding.kind for finding in one.findings} for one in await everything(some) if one.findings}


async def test_a_clean_store_has_no_findings(store: SqliteStore, tmp_path: Path) -> None:
    await put(store, "sandboxes/x", "r", "w", state="RUNNING", account="ann", label="k:v")
    await put(store, "sandboxes/y", "r", "w", deleted="yes")
    await store.transfers.release(["sandboxes/stub"], Store.B, create=True)
    assert await kinds(tmp_path / "a.db") == {}


async def test_names_that_differ_by_case_only_are_found_among_live_records(store: SqliteStore, tmp_path: Path) -> None:
    for number, key in enumerate(("One", "one", "ONE", "oNE", "two", "Two", "three")):
        deleted = {"deleted": "yes"} if key in ("Two", "oNE") else {}
        await put(store, f"sandboxes/{key}", f"r{number}", "w", **deleted)
    found = await kinds(tmp_path / "a.db")
    assert found == {f"sandboxes/{key}": {"duplicate-by-case"} for key in ("One", "one", "ONE")}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE sandboxes SET image = 'other'", "edited"),
        ("UPDATE sandboxes SET payload = x'0a0178'", "corrupt"),
        ("UPDATE sandboxes SET payload = 'text'", "corrupt"),
        ("UPDATE sandboxes SET revision = revision + 1", "corrupt"),
        ("UPDATE sandboxes SET digest = 1", "corrupt"),
        ("UPDATE sandboxes SET owner = 'X'", "corrupt"),
    ],
)
async def test_what_somebody_has_written_beside_the_protocol_is_found(
    store: SqliteStore, tmp_path: Path, statement: str, expected: str
) -> None:
    await put(store, "sandboxes/x", "r", "w", account="ann")
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("DROP TRIGGER sandboxes_version")
        connection.execute(statement)
    assert await kinds(tmp_path / "a.db") == {"sandboxes/x": {expected}}


async def test_a_damaged_file_is_told_with_its_first_record(store: SqliteStore, tmp_path: Path) -> None:
    await store.transfers.apply([record_of(row_of(f"sandboxes/p-{number}", (0, 1), Store.A)) for number in range(30)])
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 1 WHERE name = 'sandboxes_bucket'")
    try:
        found = await kinds(tmp_path / "a.db")
    except BatonError as error:
        pytest.fail(f"what can be read of it must be: {error}")
    assert found["sandboxes/p-0"] >= {"corrupt"}

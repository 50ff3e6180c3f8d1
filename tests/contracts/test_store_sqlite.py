"""The contract of stores on SQLite: one writer, readers beside it, triggers, and survival of a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from libs.clock import ManualClock, SystemClock
from libs.errors import DiskFull
from libs.ownership.errors import OutboxFull
from libs.ownership.model import Answered, Changed, Found, Row, Version
from libs.ownership.rules import Resource, decide_write
from libs.sqlite import AlreadyOpen
from libs.store import engine
from libs.store.limits import OutboxLimits
from libs.store.port import FeedStep, Position, StorePorts
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_transaction import SqliteTransactions
from tests.contracts.conftest import MakeStore
from tests.contracts.store_adapters import (
    ADAPTERS,
    SQLITE_A,
    Adapter,
    Place,
    call_of,
    everything,
    open_adapter,
    own,
    put,
    putting,
    sandbox,
    write,
)
from tests.waiting import eventually

KEY = "sandboxes/a"
BOUND_SECONDS = 10.0
ACKNOWLEDGED = 100


@pytest.fixture(params=[adapter for adapter in ADAPTERS if adapter.sqlite], ids=str)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    adapter: Adapter = request.param
    return adapter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def seeded(store: StorePorts) -> StorePorts:
    await own(store, [KEY])
    await put(store, KEY, "r0", "before")
    return store


async def test_a_read_during_a_write_sees_the_row_before_it(seeded: StorePorts) -> None:
    entered, go_on = threading.Event(), threading.Event()
    call = call_of(KEY, "r1")

    def decide(found: Found) -> Changed | Answered:
        return decide_write(found, seeded.store, call, putting(sandbox(KEY, "after")))

    assert isinstance(seeded, SqliteStore)
    write = partial(engine.write, call=call, decide=decide)

    def held(connection: sqlite3.Connection) -> None:
        SqliteTransactions._run(seeded.records.transactions, write, connection)  # type: ignore[attr-defined]
        entered.set()
        assert go_on.wait(BOUND_SECONDS)

    job = asyncio.create_task(seeded._database.write(held))
    try:
        await eventually(entered.is_set)
        async with asyncio.timeout(BOUND_SECONDS / 2):
            assert (await seeded.records.read(KEY)).version == (0, 1)
            assert [found.version for found in await seeded.records.read_many([KEY])] == [(0, 1)]
            assert len(await seeded.outbox.pull(10, 0)) == 1
    finally:
        go_on.set()
        await job
    assert (await seeded.records.read(KEY)).version == (0, 2)


async def test_a_write_is_never_interleaved_with_another(seeded: StorePorts) -> None:
    seen: list[tuple[str, Version]] = []

    async def write_one(number: int) -> None:
        def change(row: Row | None, version: Version) -> Resource | Answered:
            seen.append(("begins", version))
            os.sched_yield()
            seen.append(("ends", version))
            return Resource(sandbox(KEY, f"w{number}"), True, 1)

        await write(seeded, call_of(KEY, f"r{number}"), change)

    await asyncio.gather(*(write_one(number) for number in range(1, 20)))
    versions = [Version(0, revision) for revision in range(2, 21)]
    assert seen == [(what, version) for version in versions for what in ("begins", "ends")]


def _record_table(adapter: Adapter) -> str:
    return "sandboxes" if adapter is SQLITE_A else "record"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET state = 'FAILED'",
        "UPDATE {table} SET owner = 'A', payload = x'00'",
        "UPDATE {table} SET revision = revision - 1",
        "UPDATE {table} SET term = term - 1, revision = revision + 1",
        "UPDATE {table} SET revision = NULL",
        "UPDATE {table} SET revision = revision + 1, key = 'sandboxes/b'",
        "DELETE FROM {table}",
        "INSERT INTO {table} (account, state) VALUES ('ann', 'RUNNING')",
    ],
)
async def test_nothing_writes_beside_the_protocol(
    seeded: StorePorts, path: Path, adapter: Adapter, statement: str
) -> None:
    table = _record_table(adapter)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match=f"{table}: "):
        connection.execute(statement.format(table=table))
    assert (await seeded.records.read(KEY)).version == (0, 1)


async def test_the_old_program_cannot_replace_a_row(path: Path, tmp_path: Path) -> None:
    place = Place(path, "", ManualClock(), OutboxLimits())
    async with open_adapter(SQLITE_A, place) as store:
        await put(store, KEY, "r1", "one")
        statement = "INSERT OR REPLACE INTO sandboxes (id, account, state, image) VALUES ('a', 'ann', 'RUNNING', 'i')"
        with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)
        assert (await store.records.read(KEY)).version == (0, 1)


async def test_a_row_that_changed_behind_its_back_is_not_overwritten(seeded: StorePorts, path: Path) -> None:
    """The fence in the UPDATE's own condition: nothing should ever get there, and if so, nothing is lost."""
    call = call_of(KEY, "r1")

    def decide_on_an_older_row(found: Found) -> Changed | Answered:
        decided = decide_write(found, seeded.store, call, putting(sandbox(KEY, "late")))
        assert found.row is not None
        object.__setattr__(found.row, "version", Version(0, 0))
        return decided

    with pytest.raises(RuntimeError, match="another writer"):
        await seeded.records.write(call, decide_on_an_older_row)
    assert (await seeded.records.read(KEY)).version == (0, 1)
    assert len(await seeded.outbox.pull(10, 0)) == (await seeded.outbox.depth()).entries == 1


async def test_a_second_process_is_refused(make_store: MakeStore) -> None:
    async with make_store():
        with pytest.raises(AlreadyOpen):
            async with make_store():
                pass


async def test_everything_is_there_after_a_restart(make_store: MakeStore) -> None:
    async with make_store(OutboxLimits(entries=2)) as store:
        await own(store, [KEY, "sandboxes/b"])
        await put(store, KEY, "r1", "one")
        await store.upkeep.tick(500)
        await put(store, KEY, "r2", "two")
        await store.transfers.apply([], FeedStep((Position(1, 0, 7),), skipped=7))
        before = await everything(store), await store.feed.state(), await store.outbox.pull(10, 0)
    async with make_store(OutboxLimits(entries=2)) as store:
        assert (await everything(store), await store.feed.state(), await store.outbox.pull(10, 0)) == before
        assert isinstance(await put(store, KEY, "r1", "one"), Answered)
        with pytest.raises(OutboxFull):
            await put(store, "sandboxes/b", "r3", "three")
        await store.upkeep.tick(101)
        assert await store.upkeep.prune() == 1


async def test_a_full_disk_loses_no_count(seeded: StorePorts) -> None:
    assert isinstance(seeded, SqliteStore)
    database = seeded._database
    await database.write(partial(_limit_pages, 1))
    refused = await asyncio.gather(
        *(put(seeded, KEY, f"r{number}", "w", padding="100000") for number in range(1, 6)), return_exceptions=True
    )
    assert {type(outcome) for outcome in refused} == {DiskFull}
    assert (await seeded.records.read(KEY)).version == (0, 1)
    await database.write(partial(_limit_pages, 99_999))
    await put(seeded, KEY, "r9", "w")
    entries = await seeded.outbox.pull(10, 0)
    assert (await seeded.outbox.depth())[:2] == (2, sum(len(entry.event) for entry in entries))


async def test_a_commit_that_fails_loses_no_count(seeded: StorePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a deferred constraint of a job that is in one group with the write."""
    monkeypatch.setattr("libs.sqlite.GROUP_SECONDS", BOUND_SECONDS)
    assert isinstance(seeded, SqliteStore)
    database = seeded._database
    child = "CREATE TABLE child (part INTEGER REFERENCES progress (part) DEFERRABLE INITIALLY DEFERRED)"
    await database.write(partial(_execute, child))
    database._writer.execute("PRAGMA foreign_keys = ON")
    go_on = threading.Event()
    entered = threading.Event()
    held = asyncio.create_task(database.write(lambda connection: _wait(go_on, entered), background=True))
    await eventually(entered.is_set)
    jobs = [
        asyncio.create_task(put(seeded, KEY, "r1", "w")),
        asyncio.create_task(database.write(partial(_execute, "INSERT INTO child VALUES (99)"))),
    ]
    await asyncio.sleep(0)
    go_on.set()
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    await held
    assert {type(outcome) for outcome in outcomes} == {sqlite3.IntegrityError}
    assert len(await seeded.outbox.pull(10, 0)) == (await seeded.outbox.depth()).entries == 1
    assert isinstance(await put(seeded, KEY, "r1", "w"), Changed)


def _wait(event: threading.Event, entered: threading.Event) -> None:
    entered.set()
    assert event.wait(BOUND_SECONDS)


def _execute(statement: str, connection: sqlite3.Connection) -> None:
    connection.execute(statement)


def _limit_pages(pages: int, connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA max_page_count = {pages}")


def _killed_under_load(adapter: Adapter, path: Path) -> list[tuple[str, str, int]]:
    """Writes that a process acknowledged before it was killed in the middle of others."""
    command = [sys.executable, "-m", "tests.contracts.store_under_load", adapter.name, str(path)]
    acknowledged: list[tuple[str, str, int]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        bound = threading.Timer(3 * BOUND_SECONDS, process.kill)
        bound.start()
        for line in process.stdout:
            if not line.endswith("\n"):
                break
            key, request, revision = line.split()
            acknowledged.append((key, request, int(revision)))
            if len(acknowledged) == ACKNOWLEDGED:
                process.kill()
        bound.cancel()
        bound.join()
    assert process.returncode == -signal.SIGKILL
    return acknowledged


async def test_an_acknowledged_write_survives_a_kill(adapter: Adapter, path: Path) -> None:
    acknowledged = await asyncio.to_thread(_killed_under_load, adapter, path)
    assert len(acknowledged) >= ACKNOWLEDGED
    place = Place(path, "", SystemClock(), OutboxLimits())
    async with open_adapter(adapter, place) as store:
        rows = {record.row.key: record.row.version.revision for record in await everything(store)}
        for key, request, revision in acknowledged:
            assert rows[key] >= revision
            outcome = await put(store, key, request, "again")
            assert isinstance(outcome, Answered) and outcome.version == (0, revision)
        events: list[tuple[str, int]] = []
        while entries := await store.outbox.pull(1000, 0):
            events += [(entry.key, entry.version.revision) for entry in entries]
            await store.outbox.ack([(entry.key, entry.version) for entry in entries])
        assert sorted(events) == [(key, number) for key in sorted(rows) for number in range(1, rows[key] + 1)]

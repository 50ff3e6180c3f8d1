"""The old program gets its file back, as long as the other store owns nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from libs.clock import ManualClock
from libs.ownership.model import BucketOwner, Store
from libs.sqlite import AlreadyOpen
from libs.store.sqlite import SqliteStore
from services.simple_mcp.store import MIGRATIONS, open_store
from services.simple_mcp.store import leave as leaving
from services.simple_mcp.store.leave import CannotLeave, Left, leave, status
from tests.contracts.store_adapters import put, record_of, row_of
from tests.fixtures.make_old_database import FILE, clean_rows, dirty_rows

CLOCK = ManualClock()
ROWS = len(clean_rows()) + len(dirty_rows())
POSSIBLE = "`simple_mcp leave` is possible until the first record or bucket moves to service_layer"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = Path(shutil.copy(FILE, tmp_path / "old.db"))
    sql(
        path,
        "CREATE INDEX by_account ON sandboxes (account)",
        "CREATE VIEW running AS SELECT id FROM sandboxes WHERE state = 'RUNNING'",
        "CREATE TABLE note (sandbox TEXT REFERENCES sandboxes (id))",
        "ALTER TABLE sandboxes ADD COLUMN region TEXT DEFAULT 'eu'",
        "UPDATE sandboxes SET region = id",
        "PRAGMA user_version = 40",
    )
    return path


def sql(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def rows_of(path: Path) -> dict[str, tuple[object, ...]]:
    """Rows by id, with compact JSON; rows without an id and values that are not text are left out."""
    found = sql(path, "SELECT * FROM sandboxes WHERE id <> '' AND id NOT LIKE 'row-%' AND length(id) < 246")
    return {
        row[0]: tuple(value.replace(" ", "") if isinstance(value, str) else value for value in row)
        for row in found
        if not isinstance(row[3], bytes) and row[0] != "dirty-blob"
    }


def schema_of(path: Path) -> list[Any]:
    """Without the table that SQLite keeps once it had an AUTOINCREMENT."""
    found = sql(path, "SELECT type, name, sql FROM sqlite_master WHERE name <> 'sqlite_sequence' ORDER BY name")
    return [(kind, name, made and made.replace('"', "")) for kind, name, made in found]


@pytest.mark.parametrize(("filling", "starts"), [(False, 1), (True, 1), (True, 2)])
async def test_a_file_that_nobody_has_written_to_is_as_it_was(old: Path, filling: bool, starts: int) -> None:
    rows, schema = rows_of(old), schema_of(old)
    for _ in range(starts):
        async with open_store(old, CLOCK, filling=filling):
            assert status(old)[1] == POSSIBLE
    assert leave(old, MIGRATIONS) == Left(ROWS, 0)
    assert schema_of(old) == schema
    assert {name: row for name, row in rows_of(old).items() if row != rows[name]} == {}
    assert rows_of(old).keys() == rows.keys()
    assert sql(old, "PRAGMA user_version") == [(40,)]
    assert status(old) == ["the file is the old program's: the first start takes it over"]


@pytest.mark.parametrize("filling", [False, True])
async def test_the_old_program_finds_what_clients_have_done(old: Path, filling: bool) -> None:
    async with open_store(old, CLOCK, filling=filling) as store:
        await put(store, "sandboxes/sb-0001", "r1", "one", state="STOPPED", account="ann")
        await put(store, "sandboxes/made", "r2", "two", state="RUNNING", account="ann")
        await put(store, "sandboxes/sb-0002", "r3", "gone", deleted="yes")
    assert leave(old, MIGRATIONS) == Left(ROWS, 1)
    assert sql(old, "SELECT id, state, account, region FROM sandboxes WHERE account = 'ann' ORDER BY id") == [
        ("made", "RUNNING", "ann", "eu"),
        ("sb-0001", "STOPPED", "ann", "sb-0001"),
    ]
    assert sql(old, "SELECT * FROM sandboxes WHERE id = 'sb-0002'") == []
    assert ("made",) in sql(old, "SELECT id FROM running")
    sql(
        old,
        "INSERT INTO sandboxes VALUES ('x', 'a', 'RUNNING', 'i', '[]', '{}', 1, 1, 1, '{}', 1, 1, 'eu')",
        "UPDATE sandboxes SET state = 'FAILED' WHERE id = 'sb-0001'",
        "DELETE FROM sandboxes WHERE id = 'sb-0003'",
    )


async def test_a_file_that_was_left_can_be_taken_over_again(old: Path) -> None:
    for request in ("r1", "r2"):
        async with open_store(old, CLOCK) as store:
            assert (await put(store, "sandboxes/sb-0001", request, request)).version == (0, 2)
        assert leave(old, MIGRATIONS) == Left(ROWS, 0)


async def _give_record(store: SqliteStore) -> None:
    await store.transfers.release(["sandboxes/sb-0001"], Store.B, create=False)


async def _give_bucket(store: SqliteStore) -> None:
    await store.transfers.release_bucket(7, Store.B)


async def _fence(store: SqliteStore) -> None:
    await store.recovery.fence("restored")


async def _conflict(store: SqliteStore) -> None:
    await store.seizures.take_terms([BucketOwner(bucket, 1, 1, Store.B) for bucket in range(1024)])
    await store.transfers.apply([record_of(row_of("sandboxes/late", (0, 5), Store.A))])
    await store.seizures.settle(1000)
    await store.seizures.take_terms([BucketOwner(bucket, 1, 2, Store.A) for bucket in range(1024)])


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (_give_record, "1 records and 0 buckets are not owned here: run `baton rollback`"),
        (_give_bucket, "0 records and 1 buckets are not owned here: run `baton rollback`"),
        (_fence, "this store is fenced .restored.: run `baton recover`"),
        (_conflict, "conflicts are not resolved and would be lost"),
    ],
)
async def test_what_would_be_lost_keeps_the_file_as_it_is(
    old: Path, act: Callable[[SqliteStore], Any], why: str
) -> None:
    async with open_store(old, CLOCK) as store:
        await act(store)
        with pytest.raises(AlreadyOpen):
            leave(old, MIGRATIONS)
    before = schema_of(old)
    with pytest.raises(CannotLeave, match=why):
        leave(old, MIGRATIONS)
    assert schema_of(old) == before
    assert "is not possible" in status(old)[1]


async def test_a_file_that_an_earlier_release_took_over_can_be_left(old: Path) -> None:
    async with open_store(old, CLOCK):
        pass
    async with open_store(old, CLOCK):
        pass  # The empty old table goes.
    sql(old, "DROP TABLE old_schema", "DROP TABLE filling")
    assert leave(old, MIGRATIONS) == Left(ROWS, 0)
    columns = [name for (name,) in sql(old, "SELECT name FROM pragma_table_xinfo('sandboxes')")]
    assert columns == [name for (name,) in sql(FILE, "SELECT name FROM pragma_table_xinfo('sandboxes')")] + ["region"]
    assert sql(old, "SELECT count(*) FROM sandboxes WHERE region = id")[0][0] >= ROWS - 4


async def test_nothing_is_changed_when_the_old_programs_statements_do_not_run(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(old, CLOCK):
        pass
    before = schema_of(old)
    # The row that is tried out has the id of one that is there.
    monkeypatch.setattr(leaving, "_TRIAL", "sb-0001")
    with pytest.raises(sqlite3.IntegrityError):
        leave(old, MIGRATIONS)
    assert schema_of(old) == before


_LEAVES = """
import os, signal, sys
from pathlib import Path
from services.simple_mcp.store import MIGRATIONS
from services.simple_mcp.store import leave as leaving
leaving._try_out = lambda connection: os.kill(os.getpid(), signal.SIGKILL)
leaving.leave(Path(sys.argv[1]), MIGRATIONS)
"""


async def test_a_kill_before_the_end_leaves_the_store_as_it_was(old: Path) -> None:
    async with open_store(old, CLOCK) as store:
        await put(store, "sandboxes/made", "r2", "two")
    before = schema_of(old)
    done = subprocess.run([sys.executable, "-c", _LEAVES, str(old)], check=False, env=dict(os.environ))  # noqa: ASYNC221
    assert done.returncode == -signal.SIGKILL
    assert schema_of(old) == before
    async with open_store(old, CLOCK) as store:
        assert (await store.records.read("sandboxes/made")).version == (0, 1)
    assert leave(old, MIGRATIONS) == Left(ROWS + 1, 0)

"""A file that the store could not serve is refused before anything in it is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.ownership.model import Store
from services.simple_mcp.store import UnfitFile, open_store
from tests.contracts.store_adapters import everything, put
from tests.fixtures.make_old_database import TABLE

CLOCK = ManualClock()
ROW = ("sb-1", "acme", "RUNNING", "img", "[]", "{}", 1.0, 1, 1, "{}", 1.0, 1.0)


def make(path: Path, statements: Sequence[str], table: str = TABLE) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in (*(one for one in statements if one.startswith("PRAGMA enc")), table):
            connection.execute(statement)
        columns = "id, account, state, image, command, env, cpu, memory_mb, timeout_s, metadata, created_at, updated_at"
        with suppress(sqlite3.IntegrityError):
            connection.execute(f"INSERT INTO sandboxes ({columns}) VALUES ({', '.join('?' * 12)})", ROW)
        for statement in (one for one in statements if not one.startswith("PRAGMA enc")):
            connection.execute(statement)
        connection.commit()
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.mark.parametrize(
    ("statements", "table", "named"),
    [
        (
            ["CREATE TRIGGER touch AFTER UPDATE ON sandboxes BEGIN UPDATE sandboxes SET updated_at = 1; END"],
            TABLE,
            "trigger touch on sandboxes .*DROP TRIGGER touch",
        ),
        ([], TABLE.replace("updated_at REAL", "updated_at REAL, region TEXT NOT NULL"), "column region is NOT NULL"),
        ([], TABLE.replace("timeout_s INTEGER", "timeout_s INTEGER NOT NULL"), "NOT NULL.*timeout_s.*create the table"),
        ([], TABLE.replace("cpu REAL", "cpu TEXT"), "column cpu has type TEXT, not REAL"),
        ([], TABLE.replace("account TEXT", "account NUMERIC"), "column account has type NUMERIC, not TEXT"),
        ([], TABLE.replace("id TEXT PRIMARY KEY", "id TEXT COLLATE NOCASE PRIMARY KEY"), "column id has a collation"),
        ([], TABLE.replace("account TEXT", "account TEXT COLLATE NOCASE"), "column account has collation NOCASE"),
        ([], TABLE.replace("id TEXT PRIMARY KEY", "id TEXT"), "column id has no unique index: `CREATE UNIQUE INDEX"),
        ([], TABLE + " WITHOUT ROWID", "WITHOUT ROWID"),
        (["PRAGMA encoding = 'UTF-16'"], TABLE, "UTF-16le: .*sqlite3 old.db .dump"),
        (["ALTER TABLE sandboxes ADD COLUMN owner TEXT"], TABLE, "column owner has a name .*RENAME COLUMN owner"),
        (["CREATE TABLE outbox (id INTEGER)"], TABLE, "outbox already exists.*rename"),
        ([], TABLE.replace("state TEXT NOT NULL", "state TEXT NOT NULL CHECK (state <> 'FAILED')"), "CHECK"),
        (["CREATE UNIQUE INDEX one ON sandboxes (account)"], TABLE, "unique index one .*DROP INDEX one"),
        ([], TABLE.replace("updated_at REAL", "updated_at REAL, UNIQUE (account, image)"), "UNIQUE constraint failed"),
    ],
)
async def test_what_the_store_could_not_serve_is_refused_by_name(
    tmp_path: Path, statements: Sequence[str], table: str, named: str
) -> None:
    path = make(tmp_path / "old.db", statements, table)
    before = dump(path)
    with pytest.raises(UnfitFile, match=named):
        async with open_store(path, CLOCK):
            pass
    assert dump(path) == before, "nothing was changed"


@pytest.mark.parametrize(
    ("statements", "table"),
    [
        (["CREATE INDEX by_account ON sandboxes (account)"], TABLE),
        (["CREATE UNIQUE INDEX ids ON sandboxes (id)"], TABLE.replace("id TEXT PRIMARY KEY", "id TEXT")),
        (["CREATE VIEW running AS SELECT * FROM sandboxes WHERE state = 'RUNNING'"], TABLE),
        (["CREATE TABLE note (sandbox TEXT REFERENCES sandboxes (id), text TEXT)"], TABLE),
        (["ALTER TABLE sandboxes ADD COLUMN region TEXT NOT NULL DEFAULT 'eu'"], TABLE),
        (["ALTER TABLE sandboxes ADD COLUMN size INTEGER AS (length(image))"], TABLE),
        (["PRAGMA user_version = 40"], TABLE),
        ([], TABLE.replace("account TEXT", "account VARCHAR(80)").replace("created_at REAL", "created_at DATETIME")),
        ([], TABLE.replace("CREATE TABLE sandboxes", 'CREATE TABLE "sandboxes"') + " STRICT"),
    ],
)
async def test_what_does_no_harm_is_taken_over(tmp_path: Path, statements: Sequence[str], table: str) -> None:
    path = make(tmp_path / "old.db", statements, table)
    for _ in range(2):
        async with open_store(path, CLOCK) as store:
            await put(store, "sandboxes/sb-1", "r1", "one", state="STOPPED", account="ann")
            await put(store, "sandboxes/made", "r2", "two", state="FAILED")
            await store.transfers.release(["sandboxes/sb-1"], Store.B, create=False)
            assert [record.row.key for record in await everything(store)] == ["sandboxes/made", "sandboxes/sb-1"]


async def test_a_trigger_that_came_later_is_refused_too(tmp_path: Path) -> None:
    path = make(tmp_path / "old.db", [])
    async with open_store(path, CLOCK):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER touch AFTER INSERT ON sandboxes BEGIN SELECT 1; END")
    with pytest.raises(UnfitFile, match="DROP TRIGGER touch"):
        async with open_store(path, CLOCK):
            pass

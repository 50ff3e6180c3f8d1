"""While old rows wait to be completed the store answers as if they were, whatever is asked first."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from libs.clock import ManualClock
from libs.contract.pages import Filter, Page
from libs.ownership.model import BUCKETS, BucketOwner, Changed, Outcome, Row, Store, Version, bucket_of
from libs.sandboxes.schema import SCHEMAS
from libs.sqlite import migrate
from libs.store import sqlite_fill, sqlite_old
from libs.store.inspection import ExportQuery
from libs.store.snapshots import Looked
from libs.store.sqlite import SqliteStore
from libs.store.sqlite_old import StillFilling
from services.simple_mcp.store import MIGRATIONS, open_store
from services.simple_mcp.store.audit import open_audit
from services.simple_mcp.store.flat import COLUMNS, LAYOUT, old_row, project
from services.simple_mcp.store.takeover import old_rows
from tests.contracts.store_adapters import everything, keys_of, put, record_of, row_of
from tests.fixtures.make_old_database import FILE, TABLE, clean_rows, dirty_rows
from tests.waiting import eventually

CLOCK = ManualClock()
A, B = Store.A, Store.B
ROWS = len(clean_rows()) + len(dirty_rows())
STATES = ("PENDING", "RUNNING", "STOPPED", "FAILED", "UNSPECIFIED")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(FILE, tmp_path / "old.db"))


@asynccontextmanager
async def unfilled(path: Path) -> AsyncIterator[SqliteStore]:
    """A store whose rows are completed only by the test's own actions."""
    async with open_store(path, CLOCK, filling=False) as store:
        yield store


def sql(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


async def completed(tmp_path: Path) -> dict[str, Row]:
    """The rows of the same file once all of them are completed."""
    path = Path(shutil.copy(FILE, tmp_path / "completed.db"))
    async with open_store(path, CLOCK) as store:
        assert store.fill is not None and store.fill.over
        return {record.row.key: record.row for record in await everything(store)}


async def paged(store: SqliteStore, limit: int, wanted: Filter) -> list[str]:
    keys: list[str] = []
    while page := await store.records.page(Page(wanted, after=keys[-1] if keys else "", limit=limit)):
        keys += keys_of(page)
    return keys


async def test_the_first_start_leaves_the_rows_where_they_are(old: Path) -> None:
    async with unfilled(old) as store:
        assert store.fill is not None
        census = await store.inspection.census()
    assert census[:3] == (ROWS, ROWS, BUCKETS)
    assert census.unfilled_records == sql(old, "SELECT count(*) FROM sandboxes_old")[0][0] > ROWS - len(dirty_rows())


async def test_records_are_read_before_their_rows_are_completed(old: Path, tmp_path: Path) -> None:
    rows = await completed(tmp_path)
    async with unfilled(old) as store:
        for key, row in rows.items():
            assert (await store.records.read(key)).row == row
        assert [found.row for found in await store.records.read_many(list(rows))] == list(rows.values())
        for absent in ("sandboxes/none", "sandboxes/row-1", "sandboxes/row-300-", "other/sb-0001", "sandboxes/"):
            assert (await store.records.read(absent)).row is None
    assert sql(old, "SELECT count(*) FROM sandboxes")[0][0] < len(dirty_rows()), "a read completes nothing"


@pytest.mark.parametrize("limit", [1, 7, 500])
async def test_lists_show_all_rows_in_order(old: Path, tmp_path: Path, limit: int) -> None:
    rows = await completed(tmp_path)
    async with unfilled(old) as store:
        await put(store, "sandboxes/between", "r1", "new", state="RUNNING")
        await put(store, "sandboxes/sb-0003", "r2", "changed", state="FAILED")
        keys = sorted({*rows, "sandboxes/between"}, key=str.encode)
        assert await paged(store, limit, Filter()) == keys
        listed = await store.records.page(Page(Filter(), keys=tuple(keys)))
        assert keys_of(listed) == keys and all(one.matches for one in listed)


async def test_a_list_of_some_accounts_shows_the_same_rows(old: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(FILE, tmp_path / "completed.db"))
    accounts = sorted({str(row[1]) for row in (*clean_rows(), *dirty_rows())} - {""})
    filters = [Filter(accounts=some) for some in (*((one,) for one in accounts), tuple(accounts[:2]), (), ("none",))]
    filters += [replace(one, equals=(("account", accounts[0]),)) for one in filters]
    async with open_store(path, CLOCK) as whole, unfilled(old) as store:
        keys = tuple(record.row.key for record in await everything(whole))
        for wanted in filters:
            for limit in (3, 500):
                assert await paged(store, limit, wanted) == await paged(whole, limit, wanted)
            asked = Page(wanted, keys=keys)
            assert await store.records.page(asked) == await whole.records.page(asked)
    assert sql(old, "SELECT count(*) FROM sandboxes")[0][0] < len(dirty_rows()), "a list completes nothing"


async def test_a_list_of_some_accounts_ends_at_no_row_of_another_one(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old table has no index of accounts. Without the limit, a page would end where it stopped to search."""
    account = str(clean_rows()[0][1])
    wanted = Page(Filter(labels=(("none", "such"),), accounts=(account,)))
    async with unfilled(old) as store:
        assert [one for one in await store.records.page(wanted) if not one.matches] == []
        monkeypatch.setattr(sqlite_old, "ACCOUNT_ROWS", 20)
        with pytest.raises(StillFilling, match="old program"):
            await store.records.page(wanted)
        # A page that is full before that needs no further rows.
        assert len(await store.records.page(Page(Filter(accounts=(account,)), limit=1))) == 1


async def test_filters_give_the_same_verdicts(old: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(FILE, tmp_path / "completed.db"))
    accounts = {str(row[1]) for row in (*clean_rows(), *dirty_rows())}
    filters = [
        *(Filter((("state", state),)) for state in STATES),
        *(Filter((("account", account),)) for account in (*accounts, "nobody", "\ufffd")),
        *(Filter((("state", "RUNNING"),), (("team", team),)) for team in ("red", "grün")),
        Filter(labels=(("tier", "1"), ("team", "blue")), show_deleted=True),
    ]
    async with open_store(path, CLOCK) as whole, unfilled(old) as store:
        await put(store, "sandboxes/sb-0003", "r2", "changed", state="FAILED")
        await put(whole, "sandboxes/sb-0003", "r2", "changed", state="FAILED")
        for wanted in filters:
            assert await paged(store, 5, wanted) == await paged(whole, 50, wanted), wanted


async def test_a_copy_of_all_records_completes_what_it_shows(old: Path, tmp_path: Path) -> None:
    rows = await completed(tmp_path)
    async with unfilled(old) as store:
        page, more = await store.inspection.export(ExportQuery(limit=10))
        assert more and [record.row for record in page] == [rows[key] for key in sorted(rows, key=str.encode)[:10]]
        for record in page:
            assert sql(old, f"SELECT count(*) FROM sandboxes WHERE key = '{record.row.key}'") == [(1,)]
        assert {record.row.key: record.row for record in await everything(store)} == rows
        kept, _ = await store.inspection.rows(ExportQuery(keys=("sandboxes/sb-0001",)))
        assert kept[0].row.digest == kept[0].digest
        assert (await store.inspection.census()).unfilled_records == 0


async def test_a_write_and_a_release_complete_their_row_first(old: Path) -> None:
    async with unfilled(old) as store:
        changed = await put(store, "sandboxes/sb-0001", "r1", "one")
        assert isinstance(changed, Changed) and changed.row.version == Version(0, 2)
        released = await store.transfers.release(["sandboxes/sb-0002", "sandboxes/row-301"], B, create=False)
        assert [result.outcome for result in released.results] == [Outcome.RELEASE] * 2
        assert (await store.records.read("sandboxes/sb-0002")).owner is B
        assert len(await store.outbox.pull(10, 0)) == 3
    async with unfilled(old) as store:
        assert (await store.records.read("sandboxes/sb-0001")).version == Version(0, 2)


async def test_a_name_that_an_old_row_has_is_not_given_twice(old: Path) -> None:
    """Also the name that is made for a row without one, before that row was found."""
    async with unfilled(old) as store:
        assert (await put(store, "sandboxes/row-302", "r1", "one")).version == Version(0, 2)
    rows = sql(old, "SELECT key FROM sandboxes UNION ALL SELECT 'sandboxes/' || id FROM sandboxes_old")
    assert len(rows) == len(set(rows)) == ROWS


async def test_what_arrives_is_compared_with_the_old_row(old: Path) -> None:
    async with unfilled(old) as store:
        same = row_of("sandboxes/sb-0001", (0, 1), B, "other")
        newer = row_of("sandboxes/sb-0002", (0, 5), B, "newer")
        assert await store.transfers.apply([record_of(same), record_of(newer)]) == (1, 1)
        assert (await store.records.read(same.key)).owner is A
        assert (await store.records.read(newer.key)).row == newer


@pytest.mark.parametrize(
    "action",
    [
        lambda store: store.inspection.digests(),
        lambda store: store.inspection.export(ExportQuery(buckets=(1, 2))),
        lambda store: store.inspection.rows(ExportQuery(buckets=(1, 2))),
        lambda store: store.transfers.release_bucket(3, B),
        lambda store: store.transfers.adopt_bucket(BucketOwner(3, 1, 2, A)),
        lambda store: store.seizures.seize(3, 2),
        lambda store: store.seizures.settle(10),
        lambda store: store.recovery.reopen(),
    ],
)
async def test_what_needs_every_row_waits_and_says_how_far_it_is(
    old: Path, action: Callable[[SqliteStore], Awaitable[object]]
) -> None:
    async with unfilled(old) as store:
        with pytest.raises(StillFilling, match=f"of {ROWS} old rows completed"):
            await action(store)
        assert (await store.transfers.bucket_owners([3])) == [BucketOwner(3, 0, 1, A)], "nothing was changed"


async def test_counts_take_no_bucket_for_empty(old: Path) -> None:
    async with unfilled(old) as store:
        counts = await store.inspection.counts()
    assert len(counts) == BUCKETS and all(one.owned > 0 for one in counts)


async def test_old_rows_of_a_bucket_that_was_seized_are_hidden(old: Path) -> None:
    key = "sandboxes/sb-0001"
    bucket = bucket_of(key)
    async with unfilled(old) as store:
        await store.seizures.take_terms([BucketOwner(bucket, 1, 1, B)])
        assert (await store.records.read(key)).row is None
        assert key not in await paged(store, 50, Filter())
        assert keys_of(await store.records.page(Page(Filter(), keys=(key,)))) == []
        assert key not in {record.row.key for record in await everything(store)}


async def test_completion_is_no_write_for_a_watch(old: Path) -> None:
    async with unfilled(old) as store:
        place = await store.watch.now()
        await everything(store)
        await put(store, "sandboxes/sb-0001", "r1", "one")
        assert (await store.watch.since(place, 0)).keys == ("sandboxes/sb-0001",)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sandboxes_old SET state = 'FAILED' WHERE id = 'sb-0001'",
        "DELETE FROM sandboxes_old WHERE id = 'sb-0001'",
        "INSERT INTO sandboxes_old (id, account, state, image) VALUES ('x', '', '', '')",
        "INSERT INTO sandboxes (id, account, state, image) VALUES ('x', '', '', '')",
    ],
)
async def test_no_program_writes_beside_the_store(old: Path, statement: str) -> None:
    async with unfilled(old):
        pass
    with pytest.raises(sqlite3.IntegrityError):
        sql(old, statement)


async def test_an_audit_looks_at_both_kinds_of_rows(old: Path) -> None:
    async def looked(store: SqliteStore) -> list[Looked]:
        async with open_audit(old, CLOCK) as parts:
            assert parts.snapshots is not None
            while not (taken := await parts.snapshots.take("one")).ready:
                pass
            assert taken.records == ROWS
            found: list[Looked] = []
            while page := await parts.snapshots.page("one", found[-1].key if found else "", 7):
                found += page
            return found

    async with unfilled(old) as store:
        await put(store, "sandboxes/sb-0003", "r2", "changed", state="FAILED")
        before = await looked(store)
        await everything(store)
        after = await looked(store)
    assert before == after and len(before) == ROWS
    assert {one.key for one in before if one.findings} == {"sandboxes/sb-0001", "sandboxes/SB-0001"}


async def test_the_fill_goes_on_while_clients_write_and_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_fill, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_fill, "PAUSE_SHARE", 0.0)
    keys = set(make_many(tmp_path / "old.db", 3000))
    async with open_store(tmp_path / "old.db", CLOCK) as store:
        assert store.fill is not None
        chance = random.Random(7)
        versions: dict[str, int] = {}
        while not store.fill.over:
            key = chance.choice(sorted(keys))
            changed = await put(store, key, f"r{len(versions)}{key}{versions.get(key)}", "w")
            versions[key] = versions.get(key, 1) + 1
            assert changed.version == Version(0, versions[key])
            after = chance.choice(sorted(keys))
            page = await store.records.page(Page(Filter(), after=after, limit=20))
            assert keys_of(page) == sorted((key for key in keys if key > after), key=str.encode)[:20]
        digests = await store.inspection.digests()
        assert sum(one.records for one in digests) == len(keys) == (await store.inspection.census()).records
    assert sql(tmp_path / "old.db", "SELECT done, total, moving FROM filling") == [(3000, 3000, 0)]


def make_many(path: Path, count: int) -> Sequence[str]:
    rows = clean_rows()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(TABLE)
        made = [(f"sb-{number * 7919 % count:05d}", *rows[number % len(rows)][1:]) for number in range(count)]
        connection.executemany(f"INSERT INTO sandboxes VALUES ({', '.join('?' * 12)})", made)
        connection.commit()
    return [f"sandboxes/{row[0]}" for row in made]


_FILLS = """
import asyncio, sys
from pathlib import Path
from libs.clock import SystemClock
from libs.store import sqlite_fill, sqlite_old
from services.simple_mcp.store import MIGRATIONS, open_store

async def main():
    print("opens", flush=True)
    sqlite_fill.FIRST_SECONDS = 0
    async with open_store(Path(sys.argv[1]), SystemClock()) as store:
        if store.fill is not None:
            await store.fill.ended()
    print("done", flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_fill_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    keys = make_many(path, 2500)
    chance = random.Random(11)
    for kill in (True, True, True, True, False):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _FILLS, str(path), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"opens\n"
            if kill:
                await eventually(partial(is_less_by, path, left(path), chance.randrange(200)), 60)
                process.kill()
            assert await asyncio.wait_for(process.wait(), 60) == (-signal.SIGKILL if kill else 0)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    async with open_store(path, CLOCK) as store:
        assert sorted(record.row.key for record in await everything(store)) == sorted(keys)
        digests = await store.inspection.digests()
    assert sum(one.records for one in digests) == len(keys)


def is_less_by(path: Path, before: int, rows: int) -> bool:
    return before - left(path) >= rows


def left(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM sandboxes_old").fetchone()[0])
        except sqlite3.OperationalError:
            return 2500


def test_a_completed_row_keeps_what_the_old_program_wrote_as_far_as_it_is_understood() -> None:
    for values in (*clean_rows(), *dirty_rows()):
        flat = dict(zip(COLUMNS, values, strict=True))
        row, own = old_row(f"sandboxes/{values[0]}", flat)
        *shown, lease = project(row)
        assert (LAYOUT.as_written(row.key, own), lease) == (tuple(shown), "")
        raw = {
            f"baton.dev/raw-{name}" for name, had in flat.items() if had != dict(zip(COLUMNS, own, strict=True))[name]
        }
        assert raw - {"baton.dev/raw-metadata"} == set(SCHEMAS.model_of(row).annotations) - {"baton.dev/raw-metadata"}


async def test_columns_of_the_old_program_survive_updates_and_handoffs(old: Path) -> None:
    sql(
        old,
        "ALTER TABLE sandboxes ADD COLUMN note TEXT",
        "ALTER TABLE sandboxes ADD COLUMN priority INTEGER NOT NULL DEFAULT 5",
        "UPDATE sandboxes SET note = 'kept ' || id, priority = 7",
    )
    key = "sandboxes/sb-0001"
    async with open_store(old, CLOCK) as store:
        await put(store, key, "r1", "one")
        (released,) = (await store.transfers.release([key], B, create=False)).results
        assert released.record is not None
        back = row_of(key, (0, 4), A, "at b")
        assert (await store.transfers.apply([record_of(back)])).applied == 1
        await put(store, key, "r2", "two")
        await put(store, "sandboxes/made", "r3", "made")
    assert sql(old, f"SELECT note, priority FROM sandboxes WHERE key = '{key}'") == [("kept sb-0001", 7)]
    assert sql(old, "SELECT note, priority FROM sandboxes WHERE key = 'sandboxes/made'") == [(None, 5)]
    assert sql(old, "SELECT count(*) FROM sandboxes WHERE note = 'kept ' || id AND priority = 7")[0][0] >= ROWS - 4


async def test_a_row_without_a_usable_id_is_found_by_its_number(old: Path) -> None:
    """Also before all ids were looked through."""
    async with unfilled(old):
        pass
    wanted = [key for (key,) in sql(old, "SELECT key FROM sandboxes WHERE key LIKE 'sandboxes/row-%' ORDER BY key")]
    assert wanted == ["sandboxes/row-301", "sandboxes/row-302", "sandboxes/row-303"]
    fresh = shutil.copy(FILE, old.with_name("fresh.db"))
    with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS, Path(fresh))
        rows = old_rows(connection)
        assert rows is not None
        assert list(rows.rows(connection, [*wanted, "sandboxes/row-1"])) == wanted
        rows.complete(connection, wanted)
        assert [key for (key,) in connection.execute("SELECT key FROM sandboxes ORDER BY key")] == wanted


async def test_a_store_that_has_lost_old_rows_is_fenced(old: Path) -> None:
    async with unfilled(old):
        pass
    sql(old, "DROP TRIGGER sandboxes_old_delete", "DELETE FROM sandboxes_old WHERE id = 'sb-0001'")
    async with open_store(old, CLOCK) as store:
        assert store.fill is not None and store.fill.over
        assert (await store.recovery.standing()).fence_reason == f"1 of {ROWS} rows of the old program are lost"

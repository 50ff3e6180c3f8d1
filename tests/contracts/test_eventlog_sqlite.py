"""The SQLite event log: one file for several objects and processes, and which files it refuses."""

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest

from libs.eventlog.port import LogUnavailable, TopicUnfit
from libs.eventlog.sqlite import SCHEMA_VERSION, SqliteEventLog
from tests.contracts.eventlog_adapters import PARTITIONS, event, from_start, read

BOUND_SECONDS = 60.0

APPENDER = """
import asyncio, sys
from pathlib import Path
from libs.eventlog.port import Event
from libs.eventlog.sqlite import SqliteEventLog

async def main(path, key):
    async with SqliteEventLog.open(Path(path), 16) as log:
        for number in range(50):
            await log.append([Event(key, b"value %d" % number, (("n", b"%d" % number),))])

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_two_objects_on_one_file_see_each_others_events(path: Path) -> None:
    async with SqliteEventLog.open(path) as first, SqliteEventLog.open(path) as second:
        async with second.reader(from_start(second)) as reader:
            assert await reader.poll(1, 0.0) == []
            await first.append([event("sandboxes/a", 1)])
            await second.append([event("sandboxes/a", 2)])
            found = await read(reader, 2)
        assert [stored.event for stored in found] == [event("sandboxes/a", 1), event("sandboxes/a", 2)]
        assert await first.ends() == await second.ends()


async def test_processes_that_make_and_fill_one_file_at_once_lose_nothing(path: Path) -> None:
    keys = [f"sandboxes/{number}" for number in range(4)]
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", APPENDER, path, key) for key in keys]
    async with asyncio.timeout(BOUND_SECONDS):
        assert [await process.wait() for process in processes] == [0] * len(keys)
    async with SqliteEventLog.open(path) as log, log.reader(from_start(log)) as reader:
        found = await read(reader, 50 * len(keys))
    for key in keys:
        assert [stored.event for stored in found if stored.event.key == key] == [event(key, n) for n in range(50)]


async def test_an_append_that_fails_has_appended_nothing(path: Path) -> None:
    async with SqliteEventLog.open(path) as log:
        with sqlite3.connect(path) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON event WHEN new.at = 2 BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        other.close()
        with pytest.raises(LogUnavailable, match=r"log\.db: disk full"):
            await log.append([event("sandboxes/a", number) for number in range(3)])
        assert await log.ends() == dict.fromkeys(range(PARTITIONS), (0, 0))
        await log.append([event("sandboxes/a", number) for number in range(2)])
        async with log.reader(from_start(log)) as reader:
            assert len(await read(reader, 2)) == 2


async def test_every_commit_is_forced_to_the_disk(path: Path) -> None:
    async with SqliteEventLog.open(path) as log:
        modes = await log._connection.run(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
            ]
        )
    assert modes == ["wal", 2]


async def test_another_number_of_partitions_is_refused(path: Path) -> None:
    async with SqliteEventLog.open(path, 8):
        pass
    with pytest.raises(TopicUnfit, match=r"log\.db has 8 partitions, the settings say 16; make them equal"):
        async with SqliteEventLog.open(path, 16):
            pytest.fail("a log with other partitions was opened")


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with SqliteEventLog.open(path):
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE log SET schema_version = ?", (SCHEMA_VERSION + 1,))
    other.close()
    with pytest.raises(
        TopicUnfit, match=f"has schema version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}"
    ):
        async with SqliteEventLog.open(path):
            pytest.fail("a log of a newer schema was opened")


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    content = b"notes, not a database\n" * 100
    await asyncio.to_thread(path.write_bytes, content)
    with pytest.raises(TopicUnfit, match=r"log\.db is not an SQLite database; name another file"):
        async with SqliteEventLog.open(path):
            pytest.fail("a log in a text file was opened")
    assert await asyncio.to_thread(path.read_bytes) == content


async def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE sandboxes (name TEXT)")
    other.close()
    with pytest.raises(TopicUnfit, match="another SQLite database, it has sandboxes; name another file"):
        async with SqliteEventLog.open(path):
            pytest.fail("a log in another program's database was opened")


async def test_a_folder_that_is_not_there_is_unavailable(path: Path) -> None:
    with pytest.raises(LogUnavailable, match="unable to open database file"):
        async with SqliteEventLog.open(path / "below" / "log.db"):
            pytest.fail("a log in a missing folder was opened")

"""One writer, groups of jobs, readers beside it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

import libs.sqlite
from libs.errors import DiskFull, LockTimeout, NewerSchema, Overloaded, StoreUnavailable
from libs.sqlite import GROUP_JOBS, AlreadyOpen, Database, Migration, Options
from tests.waiting import eventually

TABLE = Migration(1, ("CREATE TABLE note (word TEXT UNIQUE)",))
BOUND_SECONDS = 10.0


def adding(word: str) -> Callable[[sqlite3.Connection], None]:
    return lambda connection: void(connection.execute("INSERT INTO note VALUES (?)", (word,)))


def void(_: object) -> None:
    return None


def words(connection: sqlite3.Connection) -> list[str]:
    return [word for (word,) in connection.execute("SELECT word FROM note ORDER BY rowid")]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "d.db", (TABLE,)) as database:
        yield database


class Gate:
    """A job that holds the writer inside its transaction until it is released."""

    def __init__(self, word: str = "") -> None:
        self.word = word
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        if self.word:
            adding(self.word)(connection)
        self.entered.set()
        assert self.go_on.wait(BOUND_SECONDS)


@asynccontextmanager
async def held(database: Database, word: str = "", *, background: bool = True) -> AsyncIterator[Gate]:
    """Background work is not in one group with the clients' jobs that wait for it."""
    gate = Gate(word)
    job = asyncio.create_task(database.write(gate, background=background))
    try:
        await eventually(gate.entered.is_set)
        yield gate
    finally:
        gate.go_on.set()
        await job


async def test_a_read_during_an_open_transaction_sees_what_was_committed(database: Database) -> None:
    async with held(database, "new"), asyncio.timeout(BOUND_SECONDS / 2):
        assert await database.read(words) == []
    assert await database.read(words) == ["new"]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of jobs ends when none waits, not when its time is up: a busy machine is slower."""
    monkeypatch.setattr(libs.sqlite, "GROUP_SECONDS", BOUND_SECONDS)


@pytest.mark.usefixtures("unhurried")
async def test_jobs_that_wait_share_one_transaction_and_are_answered_after_its_commit(database: Database) -> None:
    seen: list[int] = []

    def adding_and_counting(word: str) -> Callable[[sqlite3.Connection], None]:
        def job(connection: sqlite3.Connection) -> None:
            adding(word)(connection)
            with closing(sqlite3.connect(database.path)) as other:
                seen.append(len(words(other)))

        return job

    async with held(database) as gate:
        jobs = [asyncio.create_task(database.write(adding_and_counting(f"w{number}"))) for number in range(5)]
        await asyncio.sleep(0)
        gate.go_on.set()
        await asyncio.gather(*jobs)
    assert seen == [0, 0, 0, 0, 0]
    assert await database.read(words) == [f"w{number}" for number in range(5)]


async def test_a_group_is_bounded(database: Database) -> None:
    before: list[int] = []

    def counting(connection: sqlite3.Connection) -> None:
        with closing(sqlite3.connect(database.path)) as other:
            before.append(len(words(other)))

    async with held(database) as gate:
        jobs = [asyncio.create_task(database.write(adding(f"w{number}"))) for number in range(GROUP_JOBS)]
        jobs.append(asyncio.create_task(database.write(counting)))
        await asyncio.sleep(0)
        gate.go_on.set()
        await asyncio.gather(*jobs)
    assert before[0] > 0


async def test_a_job_that_raises_is_undone_alone(database: Database) -> None:
    def odd(connection: sqlite3.Connection) -> None:
        adding("odd")(connection)
        raise KeyError("odd")

    async with held(database) as gate:
        jobs = [asyncio.create_task(database.write(job)) for job in (odd, adding("a"), odd, adding("b"), odd)]
        await asyncio.sleep(0)
        gate.go_on.set()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [KeyError, type(None), KeyError, type(None), KeyError]
    assert await database.read(words) == ["a", "b"]


@pytest.mark.usefixtures("unhurried")
async def test_clients_go_before_background_work_and_both_take_turns(database: Database) -> None:
    async with held(database, background=False) as gate:
        background = [asyncio.create_task(database.write(adding(f"b{number}"), background=True)) for number in range(3)]
        await asyncio.sleep(0)
        clients = [asyncio.create_task(database.write(adding(f"c{number}"))) for number in range(GROUP_JOBS + 3)]
        await asyncio.sleep(0)
        gate.go_on.set()
        await asyncio.gather(*background, *clients)
    order = [word[0] for word in await database.read(words)]
    first = "c" * (GROUP_JOBS - 1)  # After the held job, in its group.
    assert "".join(order) == first + "b" + "cccc" + "bb", "clients wait for one background job, not for three"


async def test_a_caller_who_left_early_leaves_nothing_and_one_who_left_late_all(database: Database) -> None:
    committed = []
    async with held(database):
        early = asyncio.create_task(database.write(adding("early")))
        await asyncio.sleep(0)
        early.cancel()
    gate = Gate("late")
    late = asyncio.create_task(database.write(gate, committed=lambda: committed.append("late")))
    await eventually(gate.entered.is_set)
    late.cancel()
    gate.go_on.set()
    await eventually(lambda: committed == ["late"])
    assert await database.read(words) == ["late"]
    for task in (early, late):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "d.db", (TABLE,), Options(queue_jobs=2)) as database:
        async with held(database):
            jobs = [asyncio.create_task(database.write(adding(word))) for word in "ab"]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await database.write(adding("c"))
            assert not any(job.done() for job in jobs)
        await asyncio.gather(*jobs)
        assert await database.read(words) == ["a", "b"]


async def test_a_full_disk_is_told_and_changes_nothing(database: Database) -> None:
    await database.write(adding("before"))
    await database.write(lambda connection: void(connection.execute("PRAGMA max_page_count = 1")))
    async with held(database) as gate:
        jobs = [asyncio.create_task(database.write(adding(word))) for word in ("a" * 50_000, "b" * 50_000)]
        await asyncio.sleep(0)
        gate.go_on.set()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {DiskFull}
    assert await database.read(words) == ["before"]
    await database.write(lambda connection: void(connection.execute("PRAGMA max_page_count = 100000")))
    await database.write(adding("after"))
    assert await database.read(words) == ["before", "after"]


@pytest.mark.usefixtures("unhurried")
async def test_a_commit_that_fails_fails_all_its_jobs(database: Database) -> None:
    """A deferred constraint is checked at the commit only."""
    await database.write(
        lambda connection: void(
            connection.execute("CREATE TABLE child (word TEXT REFERENCES note (word) DEFERRABLE INITIALLY DEFERRED)")
        )
    )

    def refusing_a_second_b(connection: sqlite3.Connection) -> None:
        if "b" in words(connection):
            raise KeyError("b is there")

    lost = database.lost_commits
    await database.write(adding("a"))
    database._writer.execute("PRAGMA foreign_keys = ON")
    async with held(database) as gate:
        good = asyncio.create_task(database.write(adding("b")))
        refused = asyncio.create_task(database.write(refusing_a_second_b))
        orphan = asyncio.create_task(
            database.write(lambda connection: void(connection.execute("INSERT INTO child VALUES ('nobody')")))
        )
        await asyncio.sleep(0)
        gate.go_on.set()
        outcomes = await asyncio.gather(good, refused, orphan, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [sqlite3.IntegrityError] * 3, "what was refused had seen b"
    assert await database.read(words) == ["a"]
    assert database.lost_commits == lost + 1
    await database.write(adding("c"))
    assert await database.read(words) == ["a", "c"]


async def test_another_process_is_kept_out(database: Database) -> None:
    with pytest.raises(AlreadyOpen, match="another process"):
        async with Database.open(database.path):
            pass


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_another_process_is_kept_out_by_whatever_path(
    database: Database, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    other = tmp_path / "elsewhere" / "linked.db"
    other.parent.mkdir()
    link(database.path, other)
    # A process of its own: closing a file drops the POSIX locks that this process has on it.
    program = (
        "import sys; from pathlib import Path; from libs.sqlite import AlreadyOpen, exclusive\n"
        "try:\n with exclusive(Path(sys.argv[1])): print('opened')\n"
        "except AlreadyOpen: print('refused')"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(other), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert printed == b"refused\n"


async def test_a_new_database_and_its_lock_are_for_their_owner_only(tmp_path: Path) -> None:
    # As the processes of Baton start (`libs.process.run`).
    before = os.umask(0o077)
    try:
        async with Database.open(tmp_path / "new.db", (TABLE,)):
            modes = {file.name: file.stat().st_mode & 0o777 for file in os.scandir(tmp_path)}
    finally:
        os.umask(before)
    assert {"new.db", "new.db.lock", "new.db-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}, modes


async def test_a_database_that_every_user_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.db"
    path.touch()
    path.chmod(0o644)
    async with Database.open(path, (TABLE,)):
        pass
    assert f"chmod o-rwx {path}" in caplog.text


async def test_a_cancelled_opener_closes_no_connection_that_still_migrates(tmp_path: Path) -> None:
    started, go_on, seen = threading.Event(), threading.Event(), list[str]()

    def migrate(connection: sqlite3.Connection) -> None:
        started.set()
        go_on.wait(BOUND_SECONDS)
        try:
            connection.execute("CREATE TABLE more (word TEXT)")
        except sqlite3.Error as error:
            seen.append(f"{type(error).__name__}: {error}")
            raise
        seen.append("done")

    async def opened() -> None:
        async with Database.open(tmp_path / "d.db", (Migration(1, migrate),)):
            pass

    opening = asyncio.create_task(opened())
    await asyncio.to_thread(started.wait, BOUND_SECONDS)
    opening.cancel()
    # Long enough for a close that does not wait.
    await asyncio.wait({opening}, timeout=0.3)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await eventually(lambda: bool(seen))
    assert "closed" not in seen[0]


async def test_a_file_that_is_closed_holds_every_commit_itself(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    async with Database.open(path, (TABLE,)) as database:
        await database.write(adding("a"))
        await database.read(words)
    assert not path.with_name("d.db-wal").exists()
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert words(connection) == ["a"]


async def test_processes_that_share_a_file_wait_for_each_other_with_a_bound(tmp_path: Path) -> None:
    options = Options(exclusive=False, busy_seconds=0.05)
    path = tmp_path / "d.db"
    async with Database.open(path, (TABLE,), options) as one, Database.open(path, (TABLE,), options) as two:
        async with held(one, "one"):
            with pytest.raises(LockTimeout):
                await two.write(adding("two"))
        await two.write(adding("three"))
        assert await one.read(words) == ["one", "three"]


async def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    async with Database.open(path, (TABLE, Migration(2, ("CREATE TABLE more (word TEXT)",)))):
        pass
    with pytest.raises(NewerSchema, match="schema 2"):
        async with Database.open(path, (TABLE,)):
            pass


async def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    with pytest.raises(sqlite3.OperationalError):
        async with Database.open(path, (TABLE, Migration(2, ("CREATE TABLE more (word TEXT)", "no statement")))):
            pass
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")] == [
            "note"
        ]


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    path.write_bytes(b"no database, " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        async with Database.open(path, (TABLE,)):
            pass


async def test_commits_are_flushed_to_the_disk(database: Database) -> None:
    def settings(connection: sqlite3.Connection) -> tuple[str, int]:
        return (
            connection.execute("PRAGMA journal_mode").fetchone()[0],
            connection.execute("PRAGMA synchronous").fetchone()[0],
        )

    assert await database.write(settings) == ("wal", 2)


async def test_a_closed_one_refuses_and_what_waited_is_done(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "d.db", (TABLE,)) as database:
        jobs = [asyncio.create_task(database.write(adding(word))) for word in "abc"]
        await asyncio.sleep(0)
    await asyncio.gather(*jobs)
    for refused in (database.write(adding("d")), database.read(words)):
        with pytest.raises(StoreUnavailable, match="closed"):
            await refused


class _Failing:
    """A connection whose COMMIT fails and whose ROLLBACK then fails too, as on a disk that has gone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self.connection, name)

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        if statement in ("COMMIT", "ROLLBACK"):
            raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(statement, *parameters)  # type: ignore[arg-type]


async def test_the_writer_goes_on_after_a_rollback_that_failed_after_a_failed_commit(database: Database) -> None:
    await database.write(adding("before"))
    database._writer = _Failing(database._writer)  # type: ignore[assignment]
    async with asyncio.timeout(BOUND_SECONDS):
        with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
            await database.write(adding("lost"))
        await database.write(adding("after"))
    assert await database.read(words) == ["before", "after"]


async def test_jobs_are_answered_while_the_connection_cannot_be_opened_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database._writer = _Failing(database._writer)  # type: ignore[assignment]

    def refuse(path: Path, busy_seconds: float) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    async with asyncio.timeout(BOUND_SECONDS):
        with monkeypatch.context() as patched:
            patched.setattr(libs.sqlite, "connect", refuse)
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError):
                    await database.write(adding("lost"))
        await database.write(adding("after"))
    assert await database.read(words) == ["after"]


async def test_a_job_is_answered_whenever_the_writer_closes(tmp_path: Path) -> None:
    """The writer ends, while jobs come, at another moment each time."""
    for number in range(30):
        outcomes: list[asyncio.Task[None]] = []
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(Database.open(tmp_path / "d.db", (TABLE,)))
            ending = asyncio.create_task(stack.aclose())
            for word in range(number + 1):
                outcomes.append(asyncio.create_task(database.write(adding(f"{number} {word}"))))
                await asyncio.sleep(0)
            await ending
            async with asyncio.timeout(BOUND_SECONDS):
                answers = await asyncio.gather(*outcomes, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {type(None), StoreUnavailable}


async def test_jobs_that_a_writer_leaves_are_answered_when_its_time_to_close_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libs.sqlite, "_CLOSE_SECONDS", 0.05)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(tmp_path / "d.db", (TABLE,)))
        async with held(database) as gate:
            job = asyncio.create_task(database.write(adding("late")))
            await asyncio.sleep(0)
            await stack.aclose()
            with pytest.raises(StoreUnavailable, match="closed"):
                await job
            gate.go_on.set()
            await asyncio.to_thread(database._thread.join, BOUND_SECONDS)


async def test_a_database_that_cannot_be_opened_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    connect = libs.sqlite.connect

    def connect_twice(path: Path, busy_seconds: float) -> sqlite3.Connection:
        if len(opened) == 2:
            raise StoreUnavailable("no third connection")
        opened.append(connect(path, busy_seconds))
        return opened[-1]

    monkeypatch.setattr(libs.sqlite, "connect", connect_twice)
    with pytest.raises(StoreUnavailable, match="no third connection"):
        async with Database.open(tmp_path / "d.db", (TABLE,)):
            pytest.fail("it was opened")
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")

"""The PostgreSQL store in trouble: a full pool, a server that dies or stands still, callers that leave, neighbours."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.backend.arrivals import Arrivals
from libs.backend.feed import ApplyLoop
from libs.clock import SystemClock
from libs.errors import DiskFull, LockTimeout, NewerSchema, Overloaded, StoreUnavailable
from libs.eventlog.memory import MemoryEventLog
from libs.eventlog.port import Event
from libs.ownership.model import Outcome, Store, Version
from libs.ownership.wire import record_to_pb
from libs.postgres import UnfitDatabase
from libs.proving.servers.postgres import Postgres
from libs.store.port import FeedStep, Parked, Position
from libs.store.transaction import StartAgain
from services.service_layer.store.postgres import PoolSettings, PostgresOptions, PostgresStore, open_store
from services.service_layer.store.postgres_errors import translated
from services.service_layer.store.postgres_pool import normalised
from services.service_layer.store.postgres_schema import migrate
from tests.contracts.store_adapters import check_nothing, own, put, record_of, row_of, served_of
from tests.waiting import eventually

KEY = "sandboxes/k"
QUICK = PostgresOptions(
    pools=PoolSettings(
        request_pool=2, apply_pool=2, pool_timeout_seconds=0.2, statement_timeout_seconds=1.0, lock_timeout_seconds=0.6
    )
)
BOUND_SECONDS = 20.0


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresStore]:
    """A store that owns KEY."""
    async with open_store(dsn, options=QUICK) as store:
        await own(store, [KEY])
        yield store


@asynccontextmanager
async def locked(dsn: str, *keys: str) -> AsyncIterator[Any]:
    """Hold locks on these rows."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN")
        await connection.fetch("SELECT 1 FROM record WHERE key = ANY($1::text[]) FOR UPDATE", list(keys))
        yield connection
        await connection.execute("ROLLBACK")
    finally:
        await connection.close(timeout=5)


@contextmanager
def standing_still(postgres: Postgres) -> Iterator[None]:
    postgres.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        postgres.kill(signal.SIGCONT)


async def works(store: PostgresStore) -> bool:
    try:
        await store.records.read(KEY)
        await store.inspection.census()
    except (StoreUnavailable, Overloaded):
        return False
    return True


async def counts(dsn: str) -> tuple[int, int, int]:
    """Revision of KEY, events, served requests: equal, or a change was not whole."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT coalesce(max(revision), 0) FROM record), (SELECT count(*) FROM outbox),"
            " (SELECT count(*) FROM served)"
        )
        return tuple(row)
    finally:
        await connection.close()


async def test_a_call_that_gets_no_connection_is_refused(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        await put(store, KEY, "r0", "x")
        async with locked(store_dsn, KEY), asyncio.timeout(BOUND_SECONDS):
            waiting = [asyncio.ensure_future(put(store, KEY, f"r{n}", "x")) for n in (1, 2)]
            await eventually(lambda: store.requests.in_use == 2, what="both connections are taken")
            with pytest.raises(Overloaded):
                await store.records.read(KEY)
            assert await store.inspection.census(), "upkeep has connections of its own"
            await asyncio.gather(*waiting, return_exceptions=True)
        assert (await store.records.read(KEY)).row is not None
        await eventually(lambda: store.requests.in_use == 0, what="all connections are back")


async def test_more_calls_than_may_wait_are_refused_at_once(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        results = await asyncio.gather(*(store.records.read(KEY) for _ in range(300)), return_exceptions=True)
        refused = [one for one in results if isinstance(one, BaseException)]
        assert refused and all(isinstance(one, Overloaded) for one in refused)
        assert len(refused) < len(results)
        assert await works(store)


async def test_a_write_to_a_row_that_stays_locked_is_told_that_it_is_busy(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        await put(store, KEY, "r0", "x")
        async with locked(store_dsn, KEY), asyncio.timeout(BOUND_SECONDS):
            with pytest.raises(LockTimeout):
                await put(store, KEY, "r1", "y")
        assert await counts(store_dsn) == (1, 1, 1)


async def test_a_release_of_many_passes_a_locked_row_by(store_dsn: str) -> None:
    keys = [f"sandboxes/k{n}" for n in range(5)]
    async with opened(store_dsn) as store:
        await own(store, keys)
        for key in keys:
            await put(store, key, "r0", "x")
        async with locked(store_dsn, keys[2]), asyncio.timeout(BOUND_SECONDS):
            released = await store.transfers.release(keys, Store.A, create=False)
        outcomes = {result.key: result.outcome for result in released.results}
        assert outcomes == {key: None if key == keys[2] else Outcome.RELEASE for key in keys}
        again = await store.transfers.release(keys, Store.A, create=False)
        assert [result.outcome for result in again.results].count(Outcome.RELEASE) == 1


async def test_a_killed_server_is_unavailable_and_works_again_after_its_restart(
    postgres: Postgres, store_dsn: str
) -> None:
    async with opened(store_dsn) as store:
        await put(store, KEY, "r0", "x")
        await store.feed.claim(4)
        postgres.kill()
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                with pytest.raises(StoreUnavailable):
                    await store.records.read(KEY)
                with pytest.raises(StoreUnavailable):
                    await put(store, KEY, "r1", "y")
                with pytest.raises(StoreUnavailable):
                    await store.upkeep.tick(1.0)
        finally:
            postgres.restart()
        await eventually(lambda: works(store), what="the store answers again")
        found = await store.records.read(KEY)
        assert found.version == Version(0, 1), "what was acknowledged is there, what failed is not"
        await put(store, KEY, "r1", "y")
        await eventually(lambda: claims(store, 4, [0, 1, 2, 3]), what="it has its partitions again")


async def test_a_server_that_stands_still_fails_calls_within_their_bound(postgres: Postgres, store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        await put(store, KEY, "r0", "x")
        async with asyncio.timeout(BOUND_SECONDS):
            with standing_still(postgres):
                with pytest.raises((StoreUnavailable, Overloaded)):
                    await store.records.read(KEY)
                with pytest.raises((StoreUnavailable, Overloaded)):
                    await put(store, KEY, "r1", "y")
        await eventually(lambda: works(store), what="the store answers again")
        await eventually(lambda: store.requests.in_use == 0, what="all connections are back")


async def test_connections_that_the_server_ended_are_replaced_unnoticed(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        await asyncio.gather(*(store.records.read(KEY) for _ in range(2)))
        connection = await asyncpg.connect(store_dsn)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await connection.close()
        await eventually(lambda: works(store), what="the store answers on new connections")
        assert all([await works(store) for _ in range(5)])


async def test_a_caller_that_leaves_while_its_write_waits_leaves_the_whole_change(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        await put(store, KEY, "r0", "x")
        async with locked(store_dsn, KEY) as holder:
            task = asyncio.ensure_future(put(store, KEY, "r1", "y"))
            await eventually(lambda: is_blocked(holder), what="the write waits for the row")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await eventually(lambda: store.requests.in_use == 0, what="the connection is back")
        assert await counts(store_dsn) == (2, 2, 2)


async def test_callers_that_leave_at_any_moment_leave_whole_changes_and_the_pool_intact(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        for steps in range(60):
            task = asyncio.ensure_future(put(store, KEY, f"r{steps}", "x"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: store.requests.in_use == 0, what="all connections are back")
        revision, events, served = await counts(store_dsn)
        assert revision == events == served > 0
        await put(store, KEY, "last", "y")


async def test_two_processes_share_the_partitions_and_one_takes_over_what_the_other_leaves(store_dsn: str) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_store(store_dsn, options=QUICK))
        assert list(await first.feed.claim(16)) == list(range(16))
        async with open_store(store_dsn, options=QUICK) as second:

            async def shared() -> bool:
                mine, theirs = await first.feed.claim(16), await second.feed.claim(16)
                assert not set(mine) & set(theirs), "one process at a time has a partition"
                return len(mine) == len(theirs) == 8

            await eventually(lambda: shared(), what="eight partitions each")
        await eventually(lambda: claims(first, 16, list(range(16))), what="all partitions with the one that is left")


async def test_only_one_process_advances_the_ticks(postgres_dsn: str) -> None:
    async def ticks() -> int:
        return int(await connection.fetchval("SELECT now FROM tick"))

    connection = await asyncpg.connect(postgres_dsn)
    async with open_store(postgres_dsn, options=QUICK) as second_to_come:
        async with open_store(postgres_dsn, options=QUICK) as late:
            await second_to_come.upkeep.tick(10.0)
            await late.upkeep.tick(10.0)
            assert await ticks() == 10_000
        await second_to_come.upkeep.tick(1.0)
        assert await ticks() == 11_000
    async with open_store(postgres_dsn, options=QUICK) as third:
        await third.upkeep.tick(2.5)
        assert await ticks() == 13_500
    await connection.close()


async def test_a_change_of_another_process_ends_the_wait_for_changes(store_dsn: str) -> None:
    async with opened(store_dsn) as store, open_store(store_dsn, options=QUICK) as other:
        pull = asyncio.ensure_future(other.outbox.pull(10, BOUND_SECONDS))
        await put(store, KEY, "r0", "x")
        assert [entry.key for entry in await pull] == [KEY]


async def test_counters_and_parked_events_move_with_the_position(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        parked = Parked(5, 2, KEY, "not a record", b"\xff")
        await store.transfers.apply([], FeedStep((Position(5, 0, 3), Position(6, 0, 1)), (parked,), skipped=3))
        state = await store.feed.state()
        assert (dict(state.next_offsets), state.read, state.parked_now) == ({5: 3, 6: 1}, 4, 1)
        assert await store.feed.parked(10) == [parked]


async def test_a_database_without_the_schema_names_the_command(postgres_dsn: str) -> None:
    with pytest.raises(UnfitDatabase, match=r"python -m services\.service_layer migrate"):
        async with open_store(postgres_dsn, options=PostgresOptions(migrate=False)):
            pass


async def test_a_newer_schema_is_refused(postgres: Postgres, postgres_dsn: str) -> None:
    await migrate(postgres_dsn)
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", database=postgres_dsn.rsplit("/", 1)[1])
    with pytest.raises(NewerSchema, match="9999"):
        async with open_store(postgres_dsn):
            pass


async def test_a_server_that_forgets_what_it_committed_is_refused(postgres: Postgres, postgres_dsn: str) -> None:
    name = postgres_dsn.rsplit("/", 1)[1]
    postgres.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with pytest.raises(UnfitDatabase, match="synchronous_commit"):
        async with open_store(postgres_dsn):
            pass


async def test_a_standby_is_refused(stack_directory: Path) -> None:
    server = Postgres(stack_directory / "standby")
    try:
        server.start()
        server.stop()
        (server.directory / "data" / "standby.signal").touch()
        server.start()
        with pytest.raises(UnfitDatabase, match="standby"):
            async with open_store(server.dsn):
                pass
    finally:
        server.kill()


async def test_processes_that_start_together_migrate_once(postgres_dsn: str) -> None:
    await asyncio.gather(*(migrate(postgres_dsn) for _ in range(4)))
    async with open_store(postgres_dsn, options=PostgresOptions(migrate=False)) as store:
        assert (await store.inspection.census()).owned_buckets == 0, "an empty database owns nothing"


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        async with open_store("postgresql://postgres@127.0.0.1:1/nowhere"):
            pass


async def test_work_that_starts_again_without_end_is_given_up(store_dsn: str) -> None:
    async with opened(store_dsn) as store:
        tries = 0

        async def never(connection: Any) -> None:
            nonlocal tries
            tries += 1
            raise StartAgain

        with pytest.raises(LockTimeout):
            await store.requests.run(never)
        assert 1 < tries < 100


def test_foreign_errors_become_ours() -> None:
    cases: list[tuple[BaseException, type[Exception]]] = [
        (asyncpg.DiskFullError("no space"), DiskFull),
        (asyncpg.DeadlockDetectedError("ring"), StartAgain),
        (asyncpg.UniqueViolationError("twice"), StartAgain),
        (asyncpg.LockNotAvailableError("held"), LockTimeout),
        (asyncpg.TooManyConnectionsError("full"), Overloaded),
        (asyncpg.AdminShutdownError("bye"), StoreUnavailable),
        (asyncpg.QueryCanceledError("statement timeout"), StoreUnavailable),
        (asyncpg.ReadOnlySQLTransactionError("standby"), StoreUnavailable),
        (asyncpg.InterfaceError("connection is closed"), StoreUnavailable),
        (ConnectionRefusedError("nobody"), StoreUnavailable),
        (TimeoutError(), StoreUnavailable),
    ]
    assert [(type(error), type(translated(error))) for error, _ in cases] == [(type(e), ours) for e, ours in cases]
    assert translated(asyncpg.UndefinedColumnError("a defect of ours")) is None


def test_a_dsn_of_another_database_is_refused() -> None:
    assert normalised("postgresql://u:p@h:1/d") == "postgresql+asyncpg://u:p@h:1/d"
    for wrong in ("mysql://h/d", "not a dsn", ""):
        with pytest.raises(UnfitDatabase, match="postgresql://"):
            normalised(wrong)


async def claims(store: PostgresStore, partitions: int, expected: list[int]) -> bool:
    return list(await store.feed.claim(partitions)) == expected


async def is_blocked(connection: Any) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
    )


async def test_no_event_of_the_log_stops_the_feed(store_dsn: str) -> None:
    def event(name: str, part: str = "", **odd: object) -> Event:
        message = record_to_pb(record_of(row_of(name, (0, 1), Store.A), served_of("r", (0, 1))))
        for field, value in odd.items():
            setattr({"": message, "served": message.served[0], "made_time": message.made_time}[part], field, value)
        return Event(message.key, message.SerializeToString())

    events = [
        event("a", principal="\0", part="served"),
        event("b", request_id="".join(map(chr, range(33, 9000))), part="served"),
        event("c", seconds=1 << 62, part="made_time"),
        event("d", schema_version=-1),
        event("e\0"),
        Event("\0", b"\xff"),
        event("good"),
    ]
    log = MemoryEventLog(1)
    await log.append(events)
    async with open_store(store_dsn) as store:

        async def open_log() -> MemoryEventLog:
            return log

        feed, positions = ApplyLoop(store, open_log, SystemClock(), Arrivals(store, check_nothing)), {0: 0}
        async with log.reader(positions) as reader:
            await feed.read_once(log, reader, positions)
        state = await store.feed.state()
        assert (state.applied, state.parked, positions) == (2, 5, {0: len(events)})
        assert len(await store.feed.parked(10)) == 5

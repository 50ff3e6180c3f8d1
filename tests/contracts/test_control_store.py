"""The contract of control stores, run against each adapter."""

import asyncio
import signal
import sqlite3
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from libs.clock import ManualClock
from libs.errors import NewerSchema
from libs.proving.servers.postgres import Postgres
from services.router.control.memory import MemoryControlStore
from services.router.control.port import (
    ControlStore,
    ControlUnavailable,
    JournalEntry,
    Report,
)
from services.router.control.postgres import PostgresControlStore
from services.router.control.sqlite import SqliteControlStore
from services.router.core.approvals import approve, basis, record
from services.router.core.gates import GateResult, Verdict
from services.router.core.pending import PendingCall
from services.router.core.phase import Phase, Setting, advance, next_phase, set_canary, set_flag
from tests.contracts.control_adapters import OpenControl

HANG_SECONDS = 5.0
"""Two seconds are promised; the rest is for a machine that has much to do."""

GATE = GateResult("lag", "Both stores are close behind each other.", Verdict.INCONCLUSIVE, "not known", "at most 300 s")


def step(before: Setting, reason: str = "because", **fields: object) -> JournalEntry:
    after = advance(before, next_phase(before))
    return JournalEntry(1_700_000_000.5, "ann", "advance", reason, before, after, **fields)  # type: ignore[arg-type]


async def test_the_first_load_makes_generation_1_with_phase_off_and_journals_it(control: ControlStore) -> None:
    assert await control.load() == Setting(generation=1, phase=Phase.OFF)
    (first,) = await control.journal(10)
    assert (first.action, first.before, first.after) == ("start", Setting(), Setting(generation=1))


async def test_two_first_loads_make_one_start(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        assert list(await asyncio.gather(one.load(), other.load())) == [Setting(generation=1)] * 2
        assert len(await one.journal(10)) == 1


async def test_a_change_is_seen_by_another_router(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        before = await other.load()
        assert await one.change(step(before))
        assert await other.load() == advance(before, next_phase(before))


async def test_flags_and_their_journal_are_seen_by_another_router(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        before = await other.load()
        after = set_flag(set_flag(before, "x.on", True), "x.off", False)
        entry = JournalEntry(1.0, "ann", "flag", "because", before, replace(after, generation=before.generation + 1))
        assert await one.change(entry)
        assert (await other.load()).flags == (("x.off", False), ("x.on", True))
        assert (await other.journal(1))[0].after.flags == (("x.off", False), ("x.on", True))


async def test_a_call_that_waits_for_a_second_person_is_seen_by_all_routers_and_taken_once(
    open_control: OpenControl,
) -> None:
    async with open_control(None) as one, open_control(None) as other:
        first = await one.load()
        call = PendingCall("c1", "StartJob", b"\x00\xff", "idp:ann", "B is lost", basis(first), 1_700_000_000.25)
        recorded = replace(record(first, call), two_person=True)
        assert await one.change(JournalEntry(1.0, "ann", "approval requested", "", first, recorded))
        before = await other.load()
        assert before == recorded
        assert (await other.journal(1))[0].after == recorded
        after, _ = approve(replace(before, two_person=False), "c1", "idp:bob", 1_700_000_001.0)
        entry = JournalEntry(2.0, "bob", "approved", "", before, after)
        assert sorted(await asyncio.gather(one.change(entry), other.change(entry))) == [False, True]
        assert (await one.load()).pending == ()


async def test_of_two_changers_one_wins_and_the_loser_changes_nothing(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        before = await one.load()
        won = await asyncio.gather(one.change(step(before, "first")), other.change(step(before, "second")))
        assert sorted(won) == [False, True]
        winner = "first" if won[0] else "second"
        assert await one.load() == advance(before, next_phase(before))
        assert [entry.reason for entry in await one.journal(10)] == [winner, ""]


async def test_many_changers_at_once_lose_no_generation(open_control: OpenControl) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_control(None)) for _ in range(3)]
        before = await stores[0].load()
        dual = Setting(
            generation=before.generation + 1,
            phase=Phase.DUAL_WRITE,
            shadow_permille=7,
            shadow_same=True,
            shadow_since=before.generation,
        )
        assert await stores[0].change(JournalEntry(0.0, "ann", "advance", "", before, dual))

        async def raise_canary(control: ControlStore) -> None:
            changed = 0
            while changed < 5:
                now = await control.load()
                after = set_canary(now, now.canary_permille + 1)
                changed += await control.change(JournalEntry(0.0, "ann", "canary", "", now, after))

        await asyncio.gather(*(raise_canary(store) for store in stores))
        assert (await stores[0].load()).canary_permille == 15
        generations = [entry.after.generation for entry in await stores[0].journal(100)]
        assert generations == list(range(17, 0, -1))


async def test_the_journal_keeps_every_field_newest_first(control: ControlStore) -> None:
    first = await control.load()
    one = step(first, "naïve “reason”", gates=(GATE,), overridden=True)
    two = step(one.after, "next")
    assert await control.change(one)
    assert await control.change(two)
    assert list(await control.journal(2)) == [two, one]
    assert list(await control.journal(1)) == [two]


async def test_a_lease_has_one_holder_until_it_is_given_up(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        assert await one.lease("mover", "router-1", 60.0)
        assert not await other.lease("mover", "router-2", 60.0)
        assert await one.lease("mover", "router-1", 60.0)
        assert await other.lease("relay-a", "router-2", 60.0)
        assert not await other.lease("mover", "router-2", 0.0)
        assert not await other.lease("mover", "router-2", 60.0)
        assert not await one.lease("mover", "router-1", 0.0)
        assert await other.lease("mover", "router-2", 60.0)


async def test_a_lease_that_is_not_renewed_for_its_time_goes_to_who_waits(open_control: OpenControl) -> None:
    clock = ManualClock()
    async with open_control(clock) as one, open_control(clock) as other:
        assert await one.lease("mover", "router-1", 10.0)
        assert not await other.lease("mover", "router-2", 10.0)
        clock.advance(9.0)
        assert await one.lease("mover", "router-1", 10.0)
        clock.advance(9.0)
        assert not await other.lease("mover", "router-2", 10.0), "it was renewed meanwhile"
        clock.advance(10.0)
        assert await other.lease("mover", "router-2", 10.0)
        assert not await one.lease("mover", "router-1", 10.0)


async def test_of_two_who_wait_for_a_dead_lease_one_gets_it(open_control: OpenControl) -> None:
    clock = ManualClock()
    async with open_control(clock) as dead, open_control(clock) as one, open_control(clock) as other:
        assert await dead.lease("mover", "router-0", 10.0)
        assert not await one.lease("mover", "router-1", 10.0)
        assert not await other.lease("mover", "router-2", 10.0)
        clock.advance(10.0)
        taken = await asyncio.gather(one.lease("mover", "router-1", 10.0), other.lease("mover", "router-2", 10.0))
        assert sorted(taken) == [False, True]


async def test_a_value_is_remembered_by_its_name(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        assert await one.remembered("gap") is None
        await one.remember("gap", "7")
        await one.remember("gap", '{"é": 8}')
        await one.remember("clients", "")
        assert await other.remembered("gap") == '{"é": 8}'
        assert await other.remembered("clients") == ""


async def test_values_of_the_release_before_are_remembered(postgres_dsn: str, tmp_path: Path) -> None:
    """Its routers may run beside this one, and write whole rows."""
    values = "('gap', true, 1, 2, 3.5, 'n', '7', 9.5)"
    async with PostgresControlStore.open(postgres_dsn) as server:
        connection = await asyncpg.connect(postgres_dsn)
        await connection.execute(f"INSERT INTO baton_control.job VALUES {values}")
        assert await server.remembered("gap") == "7"
        await server.remember("gap", "8")
        assert await connection.fetchval("SELECT cursor FROM baton_control.job WHERE job = 'gap'") == "8"
        await connection.close()
    async with SqliteControlStore.open(tmp_path / "control.db") as file:
        old = sqlite3.connect(tmp_path / "control.db", isolation_level=None)
        old.execute(f"INSERT INTO job VALUES {values}")
        assert await file.remembered("gap") == "7"
        await file.remember("gap", "8")
        assert old.execute("SELECT * FROM job").fetchall() == [("gap", 0, 0, 0, 0.0, "", "8", 0.0)]
        old.close()


async def test_a_memory_store_that_is_away_says_so() -> None:
    store = MemoryControlStore()
    store.reachable = False
    with pytest.raises(ControlUnavailable):
        await store.load()


async def test_a_locked_file_is_a_control_store_that_is_away(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    async with SqliteControlStore.open(path) as store:
        before = await store.load()
        holder = sqlite3.connect(path, isolation_level=None)
        try:
            holder.execute("BEGIN EXCLUSIVE")
            async with asyncio.timeout(HANG_SECONDS):
                with pytest.raises(ControlUnavailable, match=r"control\.db"):
                    await store.change(step(before))
        finally:
            holder.close()
        assert await store.load() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_postgres_that_is_gone_or_stands_still_is_away(
    postgres: Postgres, postgres_dsn: str, how: signal.Signals
) -> None:
    async with PostgresControlStore.open(postgres_dsn) as store:
        before = await store.load()
        postgres.kill(how)
        try:
            for _ in range(2):
                async with asyncio.timeout(HANG_SECONDS):
                    with pytest.raises(ControlUnavailable):
                        await store.load()
        finally:
            if how is signal.SIGKILL:
                postgres.restart()
            else:
                postgres.kill(signal.SIGCONT)
        assert await store.load() == before


async def test_the_journal_in_sqlite_cannot_be_altered_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    async with SqliteControlStore.open(path) as store:
        await store.load()
    connection = sqlite3.connect(path)
    try:
        for statement in ("UPDATE journal SET actor = 'nobody'", "DELETE FROM journal"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    finally:
        connection.close()


async def test_the_journal_in_postgres_cannot_be_altered_or_cut(postgres_dsn: str) -> None:
    async with PostgresControlStore.open(postgres_dsn) as store:
        await store.load()
    connection = await asyncpg.connect(postgres_dsn)
    try:
        for verb in ("UPDATE baton_control.journal SET actor = ''", "DELETE FROM baton_control.journal"):
            with pytest.raises(asyncpg.RaiseError, match="append-only"):
                await connection.execute(verb)
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await connection.execute("TRUNCATE baton_control.journal")
    finally:
        await connection.close()


async def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    async with SqliteControlStore.open(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(NewerSchema, match="schema 99"):
        async with SqliteControlStore.open(path):
            pass


async def test_tables_of_a_newer_program_are_refused(postgres_dsn: str) -> None:
    async with PostgresControlStore.open(postgres_dsn):
        pass
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("UPDATE baton_control.control SET schema_version = 99")
    await connection.close()
    with pytest.raises(NewerSchema, match="schema version 99"):
        async with PostgresControlStore.open(postgres_dsn):
            pass


async def test_another_database_is_not_taken_for_a_control_store(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE sandboxes (name TEXT)")
    connection.close()
    with pytest.raises(
        ControlUnavailable, match=r"other\.db is another SQLite database, with the tables sandboxes: name"
    ):
        async with SqliteControlStore.open(path):
            pass


async def test_a_router_s_report_takes_the_place_of_its_former_one(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        assert list(await one.reports()) == []
        await one.report(Report("r-2", 1, "{}"))
        await one.report(Report("r-1", 7, '{"calls": "ü"}'))
        await one.report(Report("r-2", 2**40, '{"calls": 3}'))
        expected = [Report("r-1", 7, '{"calls": "ü"}'), Report("r-2", 2**40, '{"calls": 3}')]
        assert list(await other.reports()) == expected


async def test_tables_of_the_first_version_are_extended(postgres_dsn: str, tmp_path: Path) -> None:
    async with PostgresControlStore.open(postgres_dsn) as store:
        before = await store.load()
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        "DROP TABLE baton_control.report, baton_control.durable_job, baton_control.last_rollback;"
        " DROP TRIGGER rollback_is_kept ON baton_control.journal; ALTER TABLE baton_control.control DROP COLUMN id;"
        " UPDATE baton_control.control SET schema_version = 1"
    )
    await connection.close()
    async with PostgresControlStore.open(postgres_dsn) as store:
        await store.report(Report("r", 1, "{}"))
        assert (await store.load(), len(await store.reports()), await store.jobs()) == (before, 1, [])
    path = tmp_path / "control.db"
    async with SqliteControlStore.open(path) as file:
        before = await file.load()
    old = sqlite3.connect(path)
    old.executescript(
        "DROP TABLE report; DROP TABLE durable_job; DROP TABLE last_rollback; DROP TRIGGER rollback_is_kept;"
        " DROP TABLE identity; PRAGMA user_version = 1"
    )
    old.close()
    async with SqliteControlStore.open(path) as file:
        await file.report(Report("r", 1, "{}"))
        assert (await file.load(), len(await file.reports()), await file.jobs()) == (before, 1, [])

"""State that every control store keeps in any case: reports without clocks, the last rollback, its own id."""

from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from libs.clock import ManualClock
from libs.proving.servers.postgres import Postgres
from services.router.control import memory, postgres, sqlite
from services.router.control.memory import MemoryControlStore
from services.router.control.port import AUTOMATIC, ControlUnavailable, JournalEntry, LastRollback, Report
from services.router.control.postgres import PostgresControlStore
from services.router.core.automatic_rollback import rolled_back
from services.router.core.phase import Phase
from tests.contracts.control_adapters import OpenControl


@pytest.mark.parametrize("hours", [0.0, 2.0, 24.0])
async def test_the_report_of_a_router_that_is_long_gone_is_forgotten(
    open_control: OpenControl, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """However wrong the clocks of the others are."""
    for module in (memory, sqlite, postgres):
        monkeypatch.setattr(module, "KEPT_REPORTS", 4)
    ahead = ManualClock()
    ahead.advance(3600 * hours)
    async with open_control(ManualClock()) as one, open_control(ahead) as other:
        await one.report(Report("gone", 1, "{}"))
        for number in range(2):
            await other.report(Report("ahead", number, "{}"))
            await one.report(Report("here", number, "{}"))
            assert [report.router for report in await one.reports()] == ["ahead", "gone", "here"]
        await other.report(Report("ahead", 9, "{}"))
        assert [report.router for report in await one.reports()] == ["ahead", "here"]


async def test_the_last_automatic_rollback_is_kept_however_long_the_journal_is(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        setting = replace(await one.load(), phase=Phase.CUTOVER)
        assert await one.last_rollback() is None
        after = rolled_back(setting)
        entry = JournalEntry(4e9, "baton", AUTOMATIC, "B fails", await one.load(), after)
        assert await one.change(entry)
        for _ in range(1100):
            before, after = after, replace(after, generation=after.generation + 1)
            assert await one.change(JournalEntry(1.0, "ann", "note", "", before, after))
        kept = await other.last_rollback()
        assert kept == LastRollback(entry, 0.0)
        await other.watched(entry.after.generation, 2.5)
        await one.watched(entry.after.generation, 1.0)
        await one.watched(after.generation, 99.0)
        kept = await one.last_rollback()
        assert kept == LastRollback(entry, 3.5)
        assert await one.change(
            again := JournalEntry(1.0, "baton", AUTOMATIC, "", after, replace(after, generation=after.generation + 1))
        )
        assert await other.last_rollback() == LastRollback(again, 0.0)


async def test_a_control_store_has_an_id_of_its_own(open_control: OpenControl) -> None:
    async with open_control(None) as one, open_control(None) as other:
        assert (await one.info()).id == (await other.info()).id != ""
        assert (await one.info()).id != (await MemoryControlStore().info()).id


async def test_each_session_of_the_control_store_commits_to_disk(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        async with PostgresControlStore.open(postgres_dsn) as store:
            assert await store._run(lambda one: one.fetchval("SHOW synchronous_commit")) == "on"
    finally:
        await connection.close()


async def test_a_standby_is_no_control_store(stack_directory: Path) -> None:
    server = Postgres(stack_directory / "control-standby")
    server.start()
    dsn = server.create_database("control")
    try:
        async with PostgresControlStore.open(dsn):
            server.stop()
            (server.directory / "data" / "standby.signal").touch()
            server.start()
        with pytest.raises(ControlUnavailable):
            async with PostgresControlStore.open(dsn):
                pass
    finally:
        server.kill()

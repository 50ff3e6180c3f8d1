"""A setting that cannot be read: routers keep the last good one, and a rollback writes over it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import asyncpg
import pytest

from libs.clock import ManualClock
from services.router.control.port import ControlStore, DamagedSetting
from services.router.control.postgres import PostgresControlStore
from services.router.control.sqlite import SqliteControlStore
from services.router.core.evidence import Evidence
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision, Migration
from services.router.flows.steering.observe import SettingCache

DAMAGED = ["", "{", "[]", "null", '{"generation": 2}', '{"generation": 9, "phase": "OFF"}', '{"phase": "LATER"}', "7"]
BY_HAND = Decision("ann", "get there", override=True)


@asynccontextmanager
async def migrating(control: ControlStore) -> AsyncIterator[Migration]:
    clock = ManualClock()
    cache = SettingCache(control, clock)
    await cache.refresh()
    yield Migration(control, cache, lambda setting: Evidence(), clock)


@pytest.mark.parametrize("value", DAMAGED)
async def test_a_rollback_writes_over_a_setting_that_cannot_be_read(tmp_path: Path, value: str) -> None:
    path = tmp_path / "control.db"
    async with SqliteControlStore.open(path) as control, migrating(control) as migration:
        await migration.advance(BY_HAND, Phase.SHADOW)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE setting SET value = ?", (value,))
            connection.commit()
        with pytest.raises(DamagedSetting, match="Only a rollback can replace it"):
            await control.load()
        with pytest.raises(DamagedSetting):
            await migration.advance(BY_HAND, Phase.DUAL_WRITE)
        after = await migration.rollback(Decision("ann", "back"), Phase.OFF)
        assert (after.phase, after.generation) == (Phase.OFF, 3)
        assert await control.load() == after
        newest = (await control.journal(1))[0]
        assert (newest.actor, newest.reason) == ("ann", "back (over a setting that could not be read)")
        assert newest.before.phase is Phase.SHADOW


async def test_automatic_rollback_writes_over_it_too(postgres_dsn: str) -> None:
    async with PostgresControlStore.open(postgres_dsn) as control, migrating(control) as migration:
        await migration.advance(BY_HAND, Phase.SHADOW)
        await migration.advance(BY_HAND, Phase.DUAL_WRITE)
        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute("UPDATE baton_control.setting SET value = 'no setting'")
        finally:
            await connection.close()
        with pytest.raises(DamagedSetting):
            await control.load()
        after = await migration.roll_back_automatically(0, "B fails")
        assert after.hold
        assert await control.load() == after

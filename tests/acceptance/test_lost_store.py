"""Where writes are answered when they are in the log, the loss of a whole store loses none that was answered."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from libs.eventlog.address import open_event_log
from libs.proving.history.consistency import acknowledged
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import read_log
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import Size, World
from tests.waiting import eventually

REASON = "an acceptance run"
LEAST_WRITES = 50
"""That B has answered before it is lost."""
ATTEMPTS = 30
"""Made while nothing comes into the log."""


async def unlogged_writes(world: World, load: Load) -> set[tuple[str, str | None]]:
    """Name and request of each acknowledged write that no event of the log has served in this very version."""
    async with open_event_log(world.servers.event_log) as log:
        events = await read_log(log)
    logged = {(event.name, served.request_id, served.version) for event in events for served in event.served}
    writes = acknowledged(load.calls())
    assert len(writes) >= LEAST_WRITES, "too few writes to show anything"
    return {(one.name, one.request_id) for one in writes if (one.name, one.request_id, one.version) not in logged}


async def lose_b(world: World, load: Load) -> None:
    """Kill it and remove its disk, while the log takes nothing more and clients go on to write."""
    await eventually(lambda: load.stats.acknowledged_writes >= LEAST_WRITES, 30.0)
    with closing(sqlite3.connect(world.directory / "log.db", isolation_level=None, timeout=10.0)) as held:
        held.execute("BEGIN IMMEDIATE")
        before = load.stats.attempts
        await eventually(lambda: load.stats.attempts >= before + ATTEMPTS, 30.0)
        await world.kill("b-1")
        for file in world.directory.glob("b.db*"):
            file.unlink()
        held.execute("ROLLBACK")


@pytest.mark.parametrize("ack", ["logged", "committed"])
async def test_a_store_that_is_lost_with_its_disk_takes_no_answered_write_with_it(tmp_path: Path, ack: str) -> None:
    """With the usual setting it does, which shows that this test would see it."""
    settings = ({"ack_logged": "CUTOVER"},) if ack == "logged" else ()
    world = World.embedded(tmp_path, size=Size(router_settings=settings))
    load = Load(LoadPlan(calls_per_second=100, retry_seconds=0.5, fresh_share=0.5), world.routers, tmp_path / "history")
    async with world.running():
        async with Walk.open(world.controls, "acceptance", world.token) as walk:
            walk.counts_records = False
            await walk.backfill()
            for _ in range(4):
                await walk.advance(REASON)
            await walk.settled()
        async with load.running():
            await lose_b(world, load)
        lost = await unlogged_writes(world, load)
    assert (lost == set()) == (ack == "logged"), lost

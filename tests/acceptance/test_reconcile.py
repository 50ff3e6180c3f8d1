"""Reconcile on real parts: manual changes of the databases are found, also if processes are killed meanwhile."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.servers.kafka import Kafka
from libs.proving.servers.postgres import Postgres
from libs.proving.servers.redis import Redis
from libs.proving.servers.stack import Stack
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from tests.acceptance.test_jobs import RECORDS, old_database

KILLS = ("router-1", "b-1")


@pytest.fixture
def stack(kafka: Kafka, postgres: Postgres, redis_server: Redis) -> Stack:
    return Stack(kafka, postgres, redis_server)


def name(number: int) -> str:
    return f"sandboxes/r-{number:05}"


EDITED_AT_B = {6: "live = false", 7: "account = 'eve'", 8: "write_revision = 0"}
"""Edits that the kept digests do not cover, by record."""


async def by_hand_at_b(dsn: str) -> None:
    """Edit by hand, with triggers disabled."""
    connection = await asyncpg.connect(dsn)
    try:
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute("UPDATE record SET payload = 'x' WHERE key = $1", name(1))
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute("DELETE FROM record WHERE key = $1", name(3))
        # Counts go with a marked removal: as if these two had never arrived. Rows that are lost are another case.
        await connection.execute(
            f"BEGIN; SET LOCAL baton.removing = 'record'; DELETE FROM record WHERE key IN ('{name(3)}', '{name(4)}');"
            "COMMIT"
        )
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE record SET payload = 'x' WHERE key = $1", name(1))
        await connection.execute("UPDATE record SET revision = revision + 1 WHERE key = $1", name(2))
        for number, edit in EDITED_AT_B.items():
            await connection.execute(f"UPDATE record SET {edit} WHERE key = $1", name(number))
    finally:
        await connection.close()


def by_hand_at_a(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        with pytest.raises(sqlite3.IntegrityError, match="a change must raise"):
            connection.execute("UPDATE sandboxes SET payload = x'00' WHERE key = ?", (name(5),))
        (guard,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'sandboxes_version'").fetchone()
        connection.execute("DROP TRIGGER sandboxes_version")
        connection.execute("UPDATE sandboxes SET payload = x'00' WHERE key = ?", (name(5),))
        connection.execute("UPDATE sandboxes SET state = 'FAILED' WHERE key = ?", (name(9),))
        connection.execute(guard)


async def killed_meanwhile(world: World, walk: Walk, job: pb.Job) -> int:
    """How many of the kills came in the middle of the job."""
    chance = random.Random(3)
    in_its_middle = 0
    for victim in KILLS:
        reached = (await walk.look_at_job(job.id)).done + chance.randint(1, 100)
        while (seen := await walk.look_at_job(job.id)).done < reached and not seen.HasField("end_time"):
            pass
        in_its_middle += not seen.HasField("end_time")
        await world.kill(victim)
        await world.start(victim)
    return in_its_middle


def found(job: pb.Job) -> dict[str, tuple[str, bool]]:
    report: dict[str, Any] = json.loads(job.report)
    return {one["key"]: (one["kind"], one["repaired"]) for one in report["differences"]}


async def test_edits_by_hand_are_found_and_what_is_missing_is_copied_whoever_is_killed(
    tmp_path: Path, stack: Stack
) -> None:
    world = World.real(tmp_path / "world", stack, old_database(tmp_path / "old.db"))
    async with world.running(), Walk.open(world.controls, "acceptance", world.token) as walk:
        walk.patience_seconds = 60.0
        await walk.backfill()
        await by_hand_at_b(world.servers.new_database)
        by_hand_at_a(world.directory / "a.db")
        shallow = await walk.job("reconcile", {"repair": "no"})
        assert found(shallow) == {name(3): ("MISSING", False), name(4): ("MISSING", False)}, "digests are as they were"
        edits = {name(number): ("CORRUPT", False) for number in (1, 2, 5, 9, *EDITED_AT_B)}
        job = await walk.start_job("reconcile", {"deep": "yes"}, rate=150.0)
        assert await killed_meanwhile(world, walk, job) == len(KILLS)
        deep = await walk.end_of_job(job.id)
        assert found(deep) == {**edits, name(3): ("MISSING", True), name(4): ("MISSING", True)}
        assert (deep.done, json.loads(deep.report)["records"]) == (1024, RECORDS)
        named = await walk.job("reconcile", {"deep": "yes", "corrupt": name(1)})
        assert found(named) == {**edits, name(1): ("CORRUPT", True)}
        again = await walk.job("reconcile", {"deep": "yes"})
        assert found(again) == {key: how for key, how in edits.items() if key != name(1)}
        ages = json.loads((await walk.job("validate", {})).report)
        assert (ages["in_both"], ages["only_in_a"], ages["only_in_b"]) == (RECORDS, 0, 0)

"""An audit of the old service's data, on real processes: every kind of finding is reported, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from libs.clock import SystemClock
from libs.pb.baton.control.v1 import control_pb2
from libs.proving.trial.walk import Walk
from libs.proving.trial.world import World
from services.router.core.audit import SAMPLE_DIFFERS, AuditReport, Verdict
from services.simple_mcp.store import open_store
from tests.fixtures import dirty
from tests.fixtures.make_old_database import FILE, clean_rows, dirty_rows
from tests.waiting import eventually

FOUND = {
    "bad-json",
    "odd-value",
    "impossible-state",
    "invalid-name",
    "old-name",
    "no-rest-path",
    "future-time",
    "dangling-owner",
    "orphaned-lease",
    "oversize",
    "beyond-contract",
    "duplicate-by-case",
}
"""Every acceptable kind, except edits by hand, which need another program beside the store."""
RECORDS = len(clean_rows()) + len(dirty_rows()) + 4
RATE = 60.0
"""Records per second: so that there is a middle to be killed in."""
ALL = {"sample": "100"}


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Over a database that has each kind of invalid data, not started."""
    old = Path(shutil.copy(FILE, tmp_path / "old.db"))
    clock = SystemClock()
    async with open_store(old, clock) as store:
        await dirty.plant_leases(store, clock.now())
    return World.embedded(tmp_path / "world", old)


def left(world: World) -> list[str]:
    """Snapshots and scratch stores that lie about."""
    return [name for _, _, files in os.walk(world.directory) for name in files if "audit" in name or "scratch" in name]


async def baton(world: World, tmp_path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON output, and messages."""
    command = [sys.executable, "-c", "from services.router.cli import main; main()", *words, "-o", "json"]
    place = {"BATON_CONTROL": world.controls[0]}
    if world.token:
        (tmp_path / "token").touch(mode=0o600)
        (tmp_path / "token").write_text(world.token)
        place["BATON_CONTROL_TOKEN_FILE"] = str(tmp_path / "token")
    pipe = asyncio.subprocess.PIPE
    ended = await asyncio.create_subprocess_exec(*command, env={**os.environ, **place}, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(60):
        printed, told = await ended.communicate()
    return ended.returncode or 0, json.loads(printed or b"{}"), told.decode()


async def gate_says(walk: Walk, verdict: control_pb2.Verdict.ValueType) -> None:
    """Wait for a moment: a router checks the findings twice a second."""

    async def said() -> bool:
        return any(gate.name == "audit" and gate.verdict == verdict for gate in (await walk.plan()).gates)

    await eventually(said)


async def test_every_kind_of_dirt_is_found_and_must_be_accepted_by_name(world: World, tmp_path: Path) -> None:
    async with world.running(), Walk.open(world.controls, "acceptance", world.token) as walk:
        code, job, told = await baton(world, tmp_path, "audit", "--yes", "--sample", "100")
        assert (code, job["report"]["verdict"], job["report"]["records"]) == (3, "FINDINGS", RECORDS), told
        found = {name: kind for name, kind in job["report"]["kinds"].items() if kind["findings"]}
        assert set(found) == FOUND
        assert job["report"]["sampled"] == RECORDS
        leases = {key for key, _ in found["orphaned-lease"]["examples"]}
        assert leases == {dirty.ABANDONED, dirty.NEVER_GRANTED, dirty.NOBODYS}
        assert {key for key, _ in found["duplicate-by-case"]["examples"]} == {"sandboxes/SB-0001", "sandboxes/sb-0001"}
        await gate_says(walk, control_pb2.VERDICT_FAIL)

        code, job, told = await baton(world, tmp_path, "audit", "--yes", "--accept", ",".join(sorted(FOUND)))
        assert (code, job["report"]["verdict"]) == (0, "ACCEPTED"), told
        assert 0.05 * RECORDS < job["report"]["sampled"] < 0.2 * RECORDS, "about a tenth"
        await gate_says(walk, control_pb2.VERDICT_PASS)

        code, _, told = await baton(world, tmp_path, "audit", "--yes", "--accept", "everything")
        assert code == 2
        assert "'everything' is not valid: acceptable kinds: " in told
        assert left(world) == []


async def test_an_audit_that_is_killed_at_random_ends_with_the_same_result(world: World) -> None:
    chance = random.Random(11)
    async with world.running(), Walk.open(world.controls, "acceptance", world.token) as walk:
        whole = AuditReport.from_json((await walk.job("audit", ALL)).report)
        job = await walk.start_job("audit", {**ALL, "accept": "oversize"}, RATE)
        for victim in ("router-1", "b-1", "a", "router-1"):
            reached = chance.randint(1, 30)
            while (await walk.look_at_job(job.id)).done < reached:
                pass
            await world.kill(victim)
            await world.start(victim)
        await walk.tune_job(job.id, 0.0)
        ended = await walk.end_of_job(job.id)
        report = AuditReport.from_json(ended.report)
        assert (ended.done, report.records, report.sampled) == (RECORDS, RECORDS, RECORDS)
        assert {name: kind.findings for name, kind in report.found.items()} == {
            name: kind.findings for name, kind in whole.found.items()
        }
        assert (report.affected, report.verdict) == (whole.affected, Verdict.FINDINGS)
        assert SAMPLE_DIFFERS not in report.found
        assert left(world) == []

"""The end of a migration by `baton certificate` and `baton retire`: refused, certified, backed up, and over."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.eventlog.codes import Codes
from libs.eventlog.key_ring import KeyRing
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import ending_pb2
from services.router.cli import backup_file
from services.router.cli.failure import Exit
from services.router.core.phase import Phase
from services.router.features.shared import Feature
from services.router.flows.jobs.chronicle import BACKUP
from services.router.flows.steering.migration import Decision
from tests.commands import answer, baton
from tests.system.control import ControlledSystem, running_controlled_system
from tests.system.whole import LONG_SECONDS, step
from tests.waiting import eventually

BY_HAND = Decision("ann", "by hand", override=True)
RECORDS = 40
RING = "sign = 'one'\n[keys]\none = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='\n"
OTHER_RING = RING.replace("MTEx", "MjIy")


@pytest.fixture
async def controlled() -> AsyncIterator[ControlledSystem]:
    codes = Codes(lambda: KeyRing("one", {"one": b"1" * 32}), "memory")
    async with running_controlled_system(codes=codes) as running:
        observed = Feature(evidence=lambda seen: replace(seen, clients_watched_seconds=LONG_SECONDS))
        running.flows.add([lambda _: observed])
        yield running


async def at_cutover(controlled: ControlledSystem) -> None:
    await controlled.put(RECORDS)
    while controlled.flows.cache.current.phase is not Phase.CUTOVER:
        await step(controlled.flows.migration, BY_HAND)
    await eventually(lambda: controlled.system.mover.settled)
    assert await controlled.records_at(Store.B) == RECORDS


async def test_a_migration_ends_with_a_certificate_a_backup_and_without_a(
    controlled: ControlledSystem, tmp_path: Path
) -> None:
    await _is_refused_before_its_time(controlled, tmp_path)
    await at_cutover(controlled)
    compared = await answer(controlled, "reconcile", "--deep", "--yes")
    digests = compared["report"]["digests"]
    assert digests["A"] == digests["B"] != "0" * 32

    async def is_complete() -> bool:
        return (await baton(controlled, "certificate")).exit_code == Exit.OK

    await eventually_true(is_complete)
    page = tmp_path / "certificate.html"
    view = await answer(controlled, "certificate", "--html", str(page))
    found = view["certificate"]
    assert (found["complete"], found["open"], found["stores"]["digests"]) == (True, [], digests)
    assert (found["stores"]["records"], found["ledger"]["lost"], found["ledger"]["doubled"]) == (RECORDS, 0, 0)
    assert [one["phase"] for one in found["history"]["phases"]["newest"]] == [
        "OFF", "SHADOW", "DUAL_WRITE", "DUAL_READ", "CUTOVER",
    ]  # fmt: skip
    assert {one["actor"] for one in found["history"]["overrides"]["newest"]} == {"ann"}
    assert "<script>" not in page.read_text()
    await _is_verified(controlled, view, page, tmp_path)
    await _is_retired(controlled, tmp_path / "a.backup", tmp_path)


async def _is_refused_before_its_time(controlled: ControlledSystem, tmp_path: Path) -> None:
    view = await answer(controlled, "certificate", code=Exit.BLOCKED)
    assert view["certificate"]["complete"] is False
    assert {"phase", "deep-comparison"} <= {item["name"] for item in view["certificate"]["open"]}
    text = await baton(controlled, "certificate")
    assert "NOT COMPLETE" in text.stdout and "baton reconcile --deep" in text.stdout
    early = await baton(controlled, "retire", "--backup", str(tmp_path / "early"), "--yes")
    assert (early.exit_code, os.listdir(tmp_path)) == (Exit.BLOCKED, [])
    assert "1. NOT DONE" in early.stdout


async def _is_verified(controlled: ControlledSystem, view: dict[str, object], page: Path, tmp_path: Path) -> None:
    good, forged, ring, other = (tmp_path / name for name in ("good.json", "forged.json", "ring.toml", "other.toml"))
    retold, unsigned = tmp_path / "retold.html", tmp_path / "unsigned.json"
    good.write_text(json.dumps(view, indent=1))
    forged.write_text(good.read_text().replace('"lost": 0', '"lost": 1'))
    html = await asyncio.to_thread(page.read_text)
    retold.write_text(html.replace("<li>lost: 0</li>", "<li>lost: none</li>"))
    unsigned.write_text(json.dumps({**view, "key": "", "code": ""}))
    ring.write_text(RING)
    other.write_text(OTHER_RING)
    for file in (good, page):
        assert (await answer(controlled, "certificate", "--verify", str(file)))["signature"] == "valid"
    assert (await baton(controlled, "certificate", "--verify", str(good), "--event-keys", str(ring))).exit_code == 0
    shown = await baton(controlled, "certificate", "--verify", str(unsigned))
    assert (shown.exit_code, "COMPLETE" in shown.stdout, "it is not signed" in shown.stdout) == (0, True, True)
    for words in (
        [str(forged)],
        [str(retold)],
        [str(good), "--event-keys", str(other)],
        [str(unsigned), "--event-keys", str(ring)],
    ):
        assert (await baton(controlled, "certificate", "--verify", *words)).exit_code == Exit.FAILED, words
    wrong = await baton(controlled, "certificate", "--verify", str(ring))
    assert wrong.exit_code == Exit.USAGE


async def _is_retired(controlled: ControlledSystem, file: Path, tmp_path: Path) -> None:
    last = ["phase", "advance", "DEPRECATED", "--confirm", "simple_mcp", "--override", "few calls", "--yes"]
    blocked = await baton(controlled, *last)
    assert (blocked.exit_code, "cold-backup" in blocked.stderr) == (Exit.INCONCLUSIVE, True)
    assert "baton retire --backup FILE" in blocked.stdout
    before = os.listdir(tmp_path)
    dry = await answer(controlled, "retire", "--backup", str(file), "--dry-run")
    assert (dry["dry_run"], os.listdir(tmp_path), dry["backup"]) == (True, before, None)
    made = await answer(controlled, "retire", "--backup", str(file), "--yes", "--reason", "the end")
    assert (made["backup"]["records"], made["backup"]["file"]) == (RECORDS, str(file))
    assert [one["state"] for one in made["steps"]][:3] == ["DONE", "DONE", "NOT_DONE"], "the backup counts at once"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    entries = await controlled.flows.migration.journal(5)
    assert [entry.action for entry in entries][:2] == ["backup recorded", "backup exported"]
    # The command was killed before the record was made: the file is not exported again.
    await controlled.store.remember(BACKUP, "null")
    again = await answer(controlled, "retire", "--backup", str(file), "--yes")
    assert (again["backup_checked"], again["backup"]["file_digest"]) == (True, made["backup"]["file_digest"])
    assert [entry.action for entry in await controlled.flows.migration.journal(2)] == ["backup recorded"] * 2
    foreign = tmp_path / "foreign"
    backup_file.write(foreign, [ending_pb2.ExportStoreResponse(sum=ending_pb2.ExportSum(digest="0"))])
    refused = await baton(controlled, "retire", "--backup", str(foreign), "--yes")
    assert (refused.exit_code, "nothing was recorded" in refused.stderr) == (Exit.FAILED, True)
    damaged = tmp_path / "damaged"
    await asyncio.to_thread(lambda: damaged.write_bytes(file.read_bytes()[:-20]))
    other = await baton(controlled, "retire", "--backup", str(damaged))
    assert (other.exit_code, "no whole backup" in other.stderr) == (Exit.FAILED, True)

    async def is_entered() -> bool:
        return (await baton(controlled, *last)).exit_code == Exit.OK

    await eventually_true(is_entered)
    await controlled.system.stop(Store.A)
    await eventually(lambda: not controlled.flows.observer.view(Store.A).reachable)
    over = await answer(controlled, "retire", "--backup", str(file))
    assert (over["complete"], over["backup_checked"]) == (True, True)
    assert [(one["name"], one["state"]) for one in over["steps"]] == [
        ("certificate", "DONE"),
        ("backup", "DONE"),
        ("deprecated", "DONE"),
        ("routes", "DONE"),
        ("stop", "DONE"),
        ("window", "NOT_DONE"),
    ]
    assert over["backup"]["keep_until_time"] is not None


async def eventually_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """A router reads the result of a job or a command within a second."""
    await eventually(condition, 20.0)

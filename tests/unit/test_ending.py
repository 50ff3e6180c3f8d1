"""The end of a migration: its certificate, its chronicle, the steps that take A away, and A's backup."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from libs.clock import ManualClock
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.seals import Seal, seal, why_no_code, why_no_seal
from libs.ownership.model import Record, Row, Store, Version
from libs.ownership.wire import record_to_pb
from libs.pb.baton.control.v1 import ending_pb2
from libs.pb.baton.record.v1 import record_pb2
from services.router.cli import backup_file
from services.router.cli.certificate import read
from services.router.cli.certificate_page import embedded, page
from services.router.cli.certificate_text import lines
from services.router.cli.failure import CommandFailed
from services.router.control.memory import MemoryControlStore
from services.router.control.port import AUTOMATIC, JournalEntry, Report
from services.router.core.gates import GateResult, Verdict
from services.router.core.jobs import Job, JobState
from services.router.core.ledger_totals import LedgerTotals
from services.router.core.migration_certificate import ENDING_GATES, Facts, canonical, document, open_items
from services.router.core.phase import Phase, Setting
from services.router.core.retirement import Standing, State, steps
from services.router.core.row_sum import Sum, with_records
from services.router.core.write_ledger import LedgerCounts
from services.router.flows.jobs.chronicle import COUNTED, HISTORY, Chronicle, Counted
from services.router.flows.steering.history import KEPT, History
from services.router.flows.steering.report import OldClient
from services.router.flows.stores import StoreView

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
RING = KeyRing("one", {"one": b"1" * 32, "two": b"2" * 32})


def result(name: str, verdict: Verdict = PASS) -> GateResult:
    return GateResult(name, "It holds.", verdict, "evidence", "threshold")


EMPTY = {"total": 0, "newest": ()}
FACTS = Facts(
    made="2026-11-30T18:00:00Z",
    router="router-1",
    service="sandbox.v1.SandboxService",
    setting=Setting(9, Phase.CUTOVER),
    results=[result(name) for name in ENDING_GATES],
    is_past=False,
    history=dict.fromkeys(("phases", "overrides", "rollbacks", "interventions"), EMPTY),
    deep=None,
    compared=None,
    ledger=LedgerCounts(7, 7),
    ledger_permille=100,
    jobs=[],
    clients=[{"name": "<old> & tired", "at": "store A", "schema_version": 1, "last_call": "2026-11-01T00:00:00Z"}],
    window_seconds=5,
    watched_seconds=60,
    parked=0,
    conflicts=0,
)


CUTOVER = {**FACTS.history, "phases": {"total": 1, "newest": [{"phase": "CUTOVER", "seconds": 100}]}}
"""A history in which CUTOVER was entered."""


def compared(ended: int, facts: Facts = FACTS) -> Facts:
    """CUTOVER was entered, and all rows were compared until then."""
    names = ("compared", "records", "different", "repaired", "left", "changing", "digests")
    return replace(facts, history=CUTOVER, deep={**dict.fromkeys(names, 0), "ended_seconds": ended})


def with_gate(name: str, verdict: Verdict, facts: Facts = FACTS) -> Facts:
    return replace(facts, results=[result(one, verdict if one == name else PASS) for one in ENDING_GATES])


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (FACTS, []),
        (replace(FACTS, setting=Setting(9, Phase.DEPRECATED)), []),
        (replace(FACTS, setting=Setting(9, Phase.DUAL_READ)), ["phase"]),
        (replace(FACTS, setting=Setting(9, Phase.CUTOVER, hold=True)), ["hold"]),
        (replace(FACTS, ledger=LedgerCounts(7, 7, lost=1)), ["ledger-total"]),
        (replace(FACTS, ledger=LedgerCounts(7, 7, doubled=1)), ["ledger-total"]),
        (replace(FACTS, ledger=None), ["ledger-total"]),
        (with_gate("a-owns-nothing", FAIL), ["a-owns-nothing"]),
        (with_gate("a-owns-nothing", INCONCLUSIVE), ["a-owns-nothing"]),
        (with_gate("deep-comparison", INCONCLUSIVE), ["deep-comparison"]),
        (compared(99), ["deep-comparison"]),
        (compared(99, with_gate("deep-comparison", FAIL)), ["deep-comparison"]),
        (compared(100), []),
        (with_gate("golden-metrics", FAIL), ["golden-metrics"]),
        (with_gate("golden-metrics", INCONCLUSIVE), []),
        (with_gate("golden-metrics", FAIL, replace(FACTS, is_past=True)), []),
        (with_gate("a-owns-nothing", INCONCLUSIVE, replace(FACTS, is_past=True)), ["a-owns-nothing"]),
    ],
)
def test_a_certificate_is_complete_only_if_nothing_is_open(facts: Facts, names: list[str]) -> None:
    items = open_items(facts)
    assert [item.name for item in items] == names
    assert all(item.text and item.remedy for item in items)
    assert (b'"complete":true' in document(facts)) is not bool(names)


def test_the_backup_is_made_after_the_certificate_and_so_is_no_part_of_it() -> None:
    assert "cold-backup" not in ENDING_GATES and "deep-comparison" in ENDING_GATES


def test_equal_certificates_are_equal_bytes() -> None:
    turned = replace(FACTS, history=dict(reversed(list(FACTS.history.items()))))
    assert document(turned) == document(FACTS)
    assert canonical({"b": "ü", "a": 1}) == '{"a":1,"b":"ü"}'.encode()


def test_a_seal_is_of_one_document_and_one_key() -> None:
    found = seal(b"document", RING)
    assert (why_no_seal(found, b"document"), why_no_code(found, RING)) == ("", "")
    assert "its digest is" in why_no_seal(found, b"documenT")
    rotated = KeyRing("two", RING.keys)
    assert why_no_code(found, rotated) == ""
    assert "not in the ring" in why_no_code(found, KeyRing("two", {"two": b"2" * 32}))
    assert "not in the ring" in why_no_code(found, None)
    assert "not the one of its digest" in why_no_code(found._replace(digest=seal(b"other", None).digest), RING)
    assert "not the one of its digest" in why_no_code(found._replace(key="two"), RING)
    assert why_no_code(Seal(found.digest), RING) == "it is not signed"


def test_a_page_shows_names_as_text_and_holds_its_json(tmp_path: Path) -> None:
    view = {"certificate": json.loads(document(FACTS)), "digest": "0" * 64, "key": "", "code": ""}
    view["certificate"]["router"] = "</script><script>alert(1)</script>"
    made = page(view)
    assert made.count("<script") == 1 and "&lt;old&gt; &amp; tired" in made
    assert json.loads(embedded(made)) == view
    file = tmp_path / "page.html"
    file.write_text(made)
    assert read(file) == view
    file.write_text("<p>no certificate</p>")
    with pytest.raises(CommandFailed, match="holds no certificate"):
        read(file)
    text = "\n".join(lines(view))
    assert "COMPLETE" in text and "window without a direct call: 5 s; direct calls observed for 60 s" in text


def entry(number: int, action: str, before: Phase, after: Phase, **more: object) -> JournalEntry:
    changed = JournalEntry(1000.0 + number, "ann", action, "why", Setting(number - 1, before), Setting(number, after))
    return replace(changed, **more)  # type: ignore[arg-type]


JOURNAL = [
    entry(1, "start", Phase.OFF, Phase.OFF),
    entry(2, "advance", Phase.OFF, Phase.SHADOW, gates=(result("lag"), result("audit", FAIL)), overridden=True),
    entry(3, "canary", Phase.SHADOW, Phase.SHADOW),
    entry(4, AUTOMATIC, Phase.SHADOW, Phase.OFF),
    entry(5, "parked event dropped", Phase.OFF, Phase.OFF),
    entry(6, "job requested", Phase.OFF, Phase.OFF),
]


def test_a_history_has_phases_overrides_rollbacks_and_interventions_each_once() -> None:
    found = History().plus(JOURNAL[:4]).plus(JOURNAL)
    assert [one["phase"] for one in found.phases.newest] == ["OFF", "SHADOW", "OFF"]
    assert [[gate["name"] for gate in one["gates"]] for one in found.overrides.newest] == [["audit"]]
    assert [one["action"] for one in found.rollbacks.newest] == [AUTOMATIC]
    assert [one["action"] for one in found.interventions.newest] == ["parked event dropped"]
    assert found.generation == 6
    assert History.from_json(found.to_json()).to_json() == found.to_json()
    assert History.from_json("{}") == History()


def test_a_history_counts_what_it_no_longer_lists() -> None:
    many = [entry(number, AUTOMATIC, Phase.SHADOW, Phase.SHADOW) for number in range(1, KEPT + 4)]
    found = History().plus(many)
    assert (found.rollbacks.total, len(found.rollbacks.newest)) == (KEPT + 3, KEPT)
    assert found.rollbacks.newest[-1]["generation"] == KEPT + 3


def test_the_totals_keep_the_counts_of_routers_that_have_ended_or_started_again() -> None:
    one, two = LedgerCounts(10, 8, waiting=2), LedgerCounts(5, 5, lost=1)
    found = LedgerTotals().seen({"one": one, "two": two}).seen({"one": one, "two": two})
    assert found.total == LedgerCounts(15, 13, waiting=2, lost=1)
    found = found.seen({"one": one})
    assert found.total == LedgerCounts(15, 13, waiting=2, lost=1), "two has ended"
    found = found.seen({"one": LedgerCounts(1, 1)})
    assert found.total == LedgerCounts(16, 14, dropped=2, lost=1), "one has started again, and checks no more"
    found = LedgerTotals().seen({"one": LedgerCounts(5, 5, lost=1)}).seen({"one": LedgerCounts(9, 9)})
    assert found.total == LedgerCounts(14, 14, lost=1), "it has started again, and already sampled more than before"


class Views:
    def view(self, store: Store) -> StoreView:
        return StoreView(store)


class Jobs:
    view: tuple[Job, ...] = (
        Job("rehearsal", "rehearsal", "ann", id="rehearsal-1", state=JobState.FINISHED, ended_seconds=5.0, note="ok"),
        Job("rehearsal", "rehearsal", "ann", id="rehearsal-2", state=JobState.RUNNING),
        Job("replay", "replay", "ann", id="replay-3", state=JobState.FINISHED, ended_seconds=5.0),
    )


async def test_a_chronicle_outlives_its_router_its_jobs_and_its_clients() -> None:
    clock, control = ManualClock(), MemoryControlStore()
    await control.load()
    clients = [OldClient("worker", 1, 3, 10.0)]
    first = Chronicle(control, Jobs(), Views(), lambda: clients, clock, "router-1")
    await first.look()
    assert await control.remembered(HISTORY) and await control.remembered(COUNTED)
    clients.clear()
    jobs = Jobs()
    jobs.view = ()
    known = await Chronicle(control, jobs, Views(), lambda: clients, clock, "router-2").read()
    assert known.counted is not None
    assert list(known.counted.jobs) == ["rehearsal-1"]
    (client,) = known.counted.clients.values()
    assert (client["name"], client["at"], client["last_call"]) == ("worker", "router", "2023-11-14T22:13:10Z")
    assert [one["phase"] for one in known.history.phases.newest] == ["OFF"]


async def test_counts_of_another_release_are_kept_and_not_taken_for_none() -> None:
    control = MemoryControlStore()
    for text in ('{"ledger": {"ended": [1, 2, 3, 4, 5, 6, 7, 8], "running": {}}, "clients": {}, "jobs": {}}', "[]"):
        await control.remember(COUNTED, text)
        chronicle = Chronicle(control, Jobs(), Views(), list, ManualClock(), "router-1")
        assert (await chronicle.read()).counted is None
        await chronicle.look()
        assert await control.remembered(COUNTED) == text
    assert b'"ledger":null' in document(replace(FACTS, ledger=None))
    view = {"certificate": json.loads(document(replace(FACTS, ledger=None))), "digest": "", "key": "", "code": ""}
    assert "not known" in "\n".join(lines(view))


async def test_a_change_during_a_look_pushes_no_entry_out_of_the_history() -> None:
    class Busy(MemoryControlStore):
        """Another router changes the setting before each of the first reads of the journal."""

        left = 2

        async def journal(self, limit: int) -> Sequence[JournalEntry]:
            if self.left:
                self.left -= 1
                before = await self.load()
                await self.change(entry(before.generation + 1, AUTOMATIC, before.phase, before.phase))
            return await super().journal(limit)

    control = Busy()
    assert (await control.load()).generation == 1
    history = (await Chronicle(control, Jobs(), Views(), list, ManualClock(), "router-1").read()).history
    assert (history.generation, history.phases.total, history.rollbacks.total) == (3, 1, 2)


async def test_one_router_at_a_time_adds_to_the_chronicle() -> None:
    clock, control = ManualClock(), MemoryControlStore()
    assert await control.lease("chronicle", "router-2", 60.0)
    await Chronicle(control, Jobs(), Views(), list, clock, "router-1").look()
    assert await control.remembered(HISTORY) is None


async def test_a_report_of_another_release_is_left_out() -> None:
    control = MemoryControlStore()
    await control.report(Report("router-9", 1, "{}"))
    chronicle = Chronicle(control, Jobs(), Views(), list, ManualClock(), "router-1")
    known = await chronicle.read()
    assert known.counted is not None and known.counted.ledger.total == LedgerCounts()
    counted = Counted(LedgerTotals(running={"router-9": LedgerCounts(7, 7)}))
    await control.remember(COUNTED, counted.to_json())
    for _ in range(2):
        await chronicle.add()
    kept = Counted.from_json(await control.remembered(COUNTED) or "")
    assert kept.ledger == counted.ledger, "it has not ended: its counts are not added up"


STANDING = Standing(Phase.CUTOVER, [], "", False, True, False, "", False)


@pytest.mark.parametrize(
    ("standing", "states"),
    [
        (replace(STANDING, open=["lag"]), "NOT_DONE WAITS WAITS DONE WAITS WAITS"),
        (STANDING, "DONE NOT_DONE WAITS DONE WAITS WAITS"),
        (replace(STANDING, backup="a.backup"), "DONE NOT_DONE WAITS DONE WAITS WAITS"),
        (replace(STANDING, backup="a.backup", backup_counts=True), "DONE DONE NOT_DONE DONE WAITS WAITS"),
        (
            replace(STANDING, backup="a.backup", backup_counts=True, phase=Phase.DEPRECATED, direct_routes=True),
            "DONE DONE DONE NOT_DONE NOT_DONE WAITS",
        ),
        (
            replace(STANDING, backup="a.backup", backup_counts=True, phase=Phase.DEPRECATED, a_answers=False),
            "DONE DONE DONE DONE DONE NOT_DONE",
        ),
        (replace(STANDING, a_answers=False), "DONE NOT_DONE WAITS DONE WAITS WAITS"),
    ],
)
def test_each_step_waits_for_those_before_it(standing: Standing, states: str) -> None:
    found = steps(standing)
    assert [step.state.value for step in found] == states.split()
    assert all(step.command and step.check for step in found)
    over = steps(replace(standing, window_over=True))[-1]
    assert over.state is State.DONE


def exported(*names: str) -> Iterator[ending_pb2.ExportStoreResponse]:
    records = [_record(name) for name in names]
    yield ending_pb2.ExportStoreResponse(records=records)
    total = with_records(Sum(), records)
    yield ending_pb2.ExportStoreResponse(sum=ending_pb2.ExportSum(records=total.records, digest=total.text))


def _record(name: str) -> record_pb2.Record:
    version = Version(0, 3)
    return record_to_pb(Record(Row(name, version, Store.B, version, True, name.encode(), 1), (), Store.B, 1.0))


def test_a_backup_is_read_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    total = backup_file.write(file, exported("one", "two"))
    found = backup_file.read(file)
    assert total is not None and (found.sum, total.records) == (total, 2)
    assert list(tmp_path.iterdir()) == [file]
    content = file.read_bytes()
    packed = gzip.decompress(content)
    file.write_bytes(gzip.compress(packed.replace(b"two", b"twO")))
    assert backup_file.read(file).sum != total
    for damaged in (content[:-9], gzip.compress(packed[:-3]), b"no backup"):
        file.write_bytes(damaged)
        with pytest.raises(backup_file.BackupUnreadable):
            backup_file.read(file)
    for place, byte in enumerate(content):
        file.write_bytes(content[:place] + bytes([byte ^ 0xFF]) + content[place + 1 :])
        # Some bytes of the header mean nothing to gzip.
        with suppress(backup_file.BackupUnreadable):
            assert backup_file.read(file).file_digest != found.file_digest


def test_an_export_that_ends_early_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[ending_pb2.ExportStoreResponse]:
        yield next(exported("one"))
        raise ConnectionError

    assert backup_file.write(tmp_path / "a", [next(exported("one"))]) is None
    with pytest.raises(ConnectionError):
        backup_file.write(tmp_path / "b", broken())
    assert not list(tmp_path.iterdir())


def test_a_backup_is_written_over_no_file_and_through_no_link(tmp_path: Path) -> None:
    other, part = tmp_path / "other", tmp_path / "a.backup.partial"
    other.write_text("of somebody else")
    part.symlink_to(other)
    with pytest.raises(FileExistsError, match="another command writes it, or one was killed"):
        backup_file.write(tmp_path / "a.backup", exported("one"))
    assert (other.read_text(), part.is_symlink()) == ("of somebody else", True)


def test_the_name_of_a_backup_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def note(opened: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(opened).st_mode))
        sync(opened)

    monkeypatch.setattr(os, "fsync", note)
    backup_file.write(tmp_path / "a.backup", exported("one"))
    assert synced == [False, True], "the file, and then its folder"


def test_a_sum_changes_with_each_field_that_two_stores_compare() -> None:
    one, two = _record("one"), _record("two")
    both = with_records(Sum(), [one, two])
    assert both == with_records(Sum(), [two, one])
    two.live = False
    assert with_records(Sum(), [one, two]) != both

"""The verdict on a trial, against a small run in which all is well and against each fault planted in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.ownership.model import BUCKETS
from libs.proving.history.consistency import LogEvent, Served
from libs.proving.history.history import Answer, Call, HistoryWriter, Outcome
from libs.proving.trial.evidence import Evidence, StoreContent
from libs.proving.trial.requests import INITIAL_VALUE
from libs.proving.trial.stores import Held
from libs.proving.trial.verdict import Result, judge
from services.router.cli.demo.report import DemoReport, Facts

OLD, UNTOUCHED, NEW = "sandboxes/old", "sandboxes/untouched", "sandboxes/new"
FACTS = Facts(stack="embedded", clients=2, seconds=1.0)


def held(name: str, revision: int, value: str, *, written: int | None = None, owner: str = "B") -> Held:
    made = (0, revision if written is None else written)
    return Held(name, (0, revision), made, owner, True, value, content=f"content of {value}")


def event(name: str, revision: int, request: str, value: str, origin: str) -> LogEvent:
    return LogEvent(name, (0, revision), (Served(request, (0, revision)),), origin, value)


BEFORE = (
    held(OLD, 1, INITIAL_VALUE, owner="A"),
    held(UNTOUCHED, 1, INITIAL_VALUE, owner="A"),
)
AFTER = (held(NEW, 2, "2.2"), held(OLD, 4, "1.1", written=2), held(UNTOUCHED, 2, INITIAL_VALUE, written=1))
EVENTS = (
    event(OLD, 2, "r1", "1.1", "A"),
    LogEvent(OLD, (0, 3), (Served("r1", (0, 2)),), "A", "1.1"),
    LogEvent(OLD, (0, 4), (Served("r1", (0, 2)),), "B", "1.1"),
    LogEvent(UNTOUCHED, (0, 2), (), "A", INITIAL_VALUE),
    event(NEW, 1, "r2", "2.1", "B"),
    event(NEW, 2, "r3", "2.2", "B"),
)


def write_history(directory: Path) -> None:
    """Two clients: one reads and updates an old record, the other makes a new one and updates it."""
    ticks = itertools.count(1)
    with HistoryWriter(directory / "client-00.jsonl", 0, lambda: float(next(ticks))) as one:
        first = one.begin("get", OLD)
        one.finish(first, Answer(Outcome.OK, value=INITIAL_VALUE, revision=(0, 1)))
        lost = one.begin("update", OLD, request_id="r1", value="1.1")
        one.finish(lost, Answer(Outcome.UNKNOWN, "UNAVAILABLE"))
        again = one.begin("update", OLD, request_id="r1", value="1.1")
        one.finish(again, Answer(Outcome.OK, revision=(0, 2)))
        last = one.begin("get", OLD)
        one.finish(last, Answer(Outcome.OK, value="1.1", revision=(0, 2)))
    with HistoryWriter(directory / "client-01.jsonl", 1, lambda: float(next(ticks))) as two:
        for request, value, revision in (("r2", "2.1", 1), ("r3", "2.2", 2)):
            number = two.begin("create" if revision == 1 else "update", NEW, request_id=request, value=value)
            two.finish(number, Answer(Outcome.OK, revision=(0, revision)))


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """Written to files and read again, as that of a real run."""
    write_history(tmp_path)
    owners = dict.fromkeys(range(BUCKETS), "B")
    stores = tuple(StoreContent(store, AFTER, {5: 77, 900: 78}, owners) for store in "AB")
    Evidence((), EVENTS, stores, BEFORE).save(tmp_path)
    return Evidence.load(tmp_path)


def test_a_run_without_a_fault_passes_and_counts_what_it_proves(evidence: Evidence) -> None:
    result = judge(evidence)
    assert result.problems == []
    assert result.ok
    assert result.findings.acknowledged_writes == 3
    assert result.findings.strict_reads == 2
    assert result.old_records == 2


def test_evidence_is_the_same_after_it_was_written_and_read(evidence: Evidence, tmp_path: Path) -> None:
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path) == evidence


def _without_event(found: Evidence) -> Evidence:
    return replace(found, events=tuple(event for event in found.events if event.name != NEW or event.version != (0, 2)))


def _with_row(found: Evidence, name: str, row: Held | None, stores: str = "AB") -> Evidence:
    """The record replaced, or taken away, at some stores."""

    def changed(content: StoreContent) -> StoreContent:
        if content.store not in stores:
            return content
        kept = [one for one in content.records if one.name != name]
        return replace(content, records=tuple(kept + ([row] if row else [])))

    return replace(found, stores=tuple(changed(content) for content in found.stores))


def _with_call(found: Evidence, number: int, **changes: object) -> Evidence:
    calls = [replace(call, **changes) if call.number == number and call.client == 0 else call for call in found.calls]  # type: ignore[arg-type]
    return replace(found, calls=tuple(calls))


def _with_digests(found: Evidence) -> Evidence:
    a, b = found.stores
    return replace(found, stores=(a, replace(b, digests={**b.digests, 5: 1})))


def _with_bucket_owner(found: Evidence, owner: str, stores: str) -> Evidence:
    def changed(content: StoreContent) -> StoreContent:
        return (
            replace(content, bucket_owners={**content.bucket_owners, 7: owner}) if content.store in stores else content
        )

    return replace(found, stores=tuple(changed(content) for content in found.stores))


PLANTED: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "an acknowledged write is not in the log": ("lost", _without_event),
    "the rows are older than an acknowledged write": (
        "lost",
        lambda found: _with_row(found, NEW, held(NEW, 1, "2.1")),
    ),
    "a record that was made is nowhere": ("lost", lambda found: _with_row(found, NEW, None)),
    "a request made two revisions": (
        "duplicated",
        lambda found: replace(found, events=(*found.events, event(NEW, 3, "r3", "2.2", "A"))),
    ),
    "two stores made the same version": (
        "duplicated",
        lambda found: replace(found, events=(*found.events, event(NEW, 2, "r9", "9.9", "A"))),
    ),
    "a strict read is older than an acknowledged write": (
        "stale_strict_reads",
        lambda found: _with_call(found, 3, value=INITIAL_VALUE, revision=(0, 1)),
    ),
    "a read saw a value that nobody wrote": ("not_linearizable", lambda found: _with_call(found, 3, value="7.7")),
    "the stores hold another payload": (
        "diverged",
        lambda found: _with_row(found, NEW, replace(held(NEW, 2, "2.2"), content="other"), stores="A"),
    ),
    "no store owns a record": ("misowned", lambda found: _with_row(found, NEW, replace(AFTER[0], owner="A"), "B")),
    "an old record is gone at both stores": ("old_records_lost", lambda found: _with_row(found, UNTOUCHED, None)),
    "an old record is not as it was": (
        "old_records_changed",
        lambda found: _with_row(found, UNTOUCHED, replace(AFTER[2], content="other")),
    ),
    "the stores disagree about who owns absent records": (
        "buckets_misowned",
        lambda found: _with_bucket_owner(found, "A", "A"),
    ),
    "an acknowledged write carries no revision": ("unjudged", lambda found: _with_call(found, 2, revision=None)),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_and_ends_the_demo_with_1(evidence: Evidence, fault: str) -> None:
    tally, plant = PLANTED[fault]
    result = judge(plant(evidence))
    assert result.as_dict()[tally] > 0
    assert any(problem.startswith(tally) for problem in result.problems)
    report = DemoReport(FACTS, None, result)
    assert report.exit_code == 1
    assert report.verdict.startswith("FAILED")
    assert report.as_dict()[tally] > 0


def test_digests_that_differ_are_a_failure(evidence: Evidence) -> None:
    result = judge(_with_digests(evidence))
    assert not result.ok
    assert "digests" in DemoReport(FACTS, None, result).verdict


def test_a_run_without_writes_or_reads_proves_nothing(evidence: Evidence) -> None:
    def only(methods: set[str]) -> Result:
        calls: tuple[Call, ...] = tuple(call for call in evidence.calls if call.method in methods)
        return judge(replace(evidence, calls=calls))

    assert not only(set()).ok
    assert not only({"get"}).ok
    assert not only({"create", "update"}).ok


def test_running_out_of_budget_is_not_a_pass(evidence: Evidence) -> None:
    result = judge(evidence, max_states=1)
    assert not result.linearizable
    assert not result.ok


def test_a_report_passes_only_with_a_good_result_and_no_failed_step(evidence: Evidence) -> None:
    good = judge(evidence)
    assert DemoReport(FACTS, None, good).exit_code == 0
    assert DemoReport(FACTS, None, None).exit_code == 1
    failed = DemoReport(replace(FACTS, failure="B did not come up"), None, good)
    assert failed.exit_code == 1
    assert "B did not come up" in failed.verdict

"""The ledger, against planted faults of each kind and a run in which all is well."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.proving.history.consistency import (
    MAX_OFFENDERS,
    Acknowledged,
    Findings,
    LogEvent,
    Row,
    Served,
    audit,
    duplicated,
    lost,
    stale_strict_reads,
)
from libs.proving.history.history import Call, Outcome

NAME = "sandboxes/one"
_numbers = itertools.count()


def write(revision: int, start: float, end: float, *, method: str = "update", request: str = "") -> Call:
    request = request or f"r{revision}"
    value = None if method in {"delete", "undelete"} else f"v{revision}"
    return Call(1, next(_numbers), method, NAME, request, start, end, Outcome.OK, value=value, revision=(0, revision))


def read(revision: int | None, start: float, end: float, *, stale: bool = False) -> Call:
    version, value = (None, None) if revision is None else ((0, revision), f"v{revision}")
    return Call(
        2, next(_numbers), "get", NAME, None, start, end, Outcome.OK, value=value, revision=version, stale=stale
    )


def event(revision: int, *served: int, origin: str = "A") -> LogEvent:
    return LogEvent(NAME, (0, revision), tuple(Served(f"r{made}", (0, made)) for made in served), origin)


def row(store: str, revision: int, owner: str = "B") -> Row:
    return Row(store, NAME, (0, revision), owner, "d1")


CALLS = [write(1, 0, 1, method="create"), write(2, 2, 3), read(2, 4, 5), write(4, 6, 7), read(4, 8, 9)]
EVENTS = [event(1, 1), event(2, 2), event(3, 1, 2), event(4, 4, origin="B"), event(2, 2)]
ROWS = [row("A", 4), row("B", 4)]


def counts(findings: Findings) -> dict[str, int]:
    names = ("lost", "duplicated", "stale_strict_reads", "diverged", "misowned", "unjudged")
    return {name: getattr(findings, name).count for name in names if getattr(findings, name).count}


def test_a_run_with_a_handoff_and_a_repeated_event_has_no_findings() -> None:
    findings = audit(CALLS, EVENTS, ROWS)
    assert findings.ok
    assert counts(findings) == {}
    assert (findings.acknowledged_writes, findings.strict_reads) == (3, 2)


def test_an_acknowledged_write_without_its_event_is_lost() -> None:
    findings = audit(CALLS, [e for e in EVENTS if e.version != (0, 2)], ROWS)
    assert counts(findings) == {"lost": 1}
    assert "(0, 2) request r2: no event" in findings.lost.offenders[0]
    assert not findings.ok


def test_an_acknowledged_write_whose_version_went_to_another_request_is_lost() -> None:
    taken = [event(1, 1), LogEvent(NAME, (0, 2), (Served("other", (0, 2)),), "B"), event(4, 4)]
    assert counts(audit(CALLS, taken, ROWS)) == {"lost": 1}


def test_an_acknowledged_write_whose_event_holds_another_value_is_lost() -> None:
    wrong = replace(EVENTS[3], value="v3")
    assert lost([Acknowledged(NAME, (0, 4), "r4", "v4")], [wrong], ROWS)
    assert not lost([Acknowledged(NAME, (0, 4), "r4", "v4")], [replace(wrong, value="v4")], ROWS)


def test_an_acknowledged_write_is_lost_if_the_owners_final_row_is_older_or_gone() -> None:
    older = audit(CALLS, EVENTS, [row("A", 3), row("B", 3)])
    assert counts(older) == {"lost": 1}
    assert "older" in older.lost.offenders[0]
    assert counts(audit(CALLS, EVENTS, [])) == {"lost": 3}


def test_a_newer_replica_does_not_excuse_an_older_owner() -> None:
    assert counts(audit(CALLS, EVENTS, [row("A", 4), row("B", 3)])) == {"lost": 1, "diverged": 1}


def test_a_request_with_two_revisions_is_duplicated_even_if_only_a_release_tells() -> None:
    twice = LogEvent(NAME, (0, 5), (Served("r2", (0, 2)), Served("r2", (0, 4))), "B")
    assert any("r2: made revisions [(0, 2), (0, 4)]" in offender for offender in duplicated([], [twice]))
    acknowledged = [Acknowledged(NAME, (0, 2), "r2"), Acknowledged(NAME, (0, 3), "r2")]
    assert len(duplicated(acknowledged, [])) == 1
    assert not duplicated([acknowledged[0], replace(acknowledged[1], name="sandboxes/two")], [])


def test_one_version_made_by_two_stores_is_found() -> None:
    assert any("two different changes" in offender for offender in duplicated([], [event(2, 2), event(2, 3)]))
    assert duplicated([], [event(3, 1, 2), event(3, 1, 2, origin="B")])


def test_a_strict_read_below_an_earlier_acknowledgement_is_stale() -> None:
    old = read(1, 4, 5)
    findings = audit([*CALLS, old], EVENTS, ROWS)
    assert counts(findings) == {"stale_strict_reads": 1}
    assert "below update" in findings.stale_strict_reads.offenders[0]


def test_a_read_that_overlaps_the_write_or_is_marked_stale_is_not_a_stale_strict_read() -> None:
    assert not stale_strict_reads([*CALLS, read(1, 2.5, 5), read(1, 4, 5, stale=True)])
    assert not stale_strict_reads([read(1, 0, 1), write(2, 2, 3)])


def test_the_highest_acknowledged_revision_counts_and_not_the_last_answer() -> None:
    late = write(3, 0, 8)
    assert stale_strict_reads([write(5, 0, 1), late, read(4, 9, 10)])
    assert not stale_strict_reads([write(5, 0, 1), late, read(5, 9, 10)])


def test_not_found_is_below_a_live_revision_unless_a_delete_may_be_above() -> None:
    missing = read(None, 4, 5)
    created = write(1, 0, 1, method="create")
    deleted = write(2, 2, 3, method="delete")
    unknown = replace(deleted, end=None, outcome=Outcome.UNKNOWN, revision=None)
    refused = replace(missing, outcome=Outcome.FAILED, reason="SANDBOX_NOT_FOUND")
    assert stale_strict_reads([created, missing])
    assert stale_strict_reads([created, refused])
    assert not stale_strict_reads([created, deleted, missing])
    assert not stale_strict_reads([created, unknown, missing])
    assert not stale_strict_reads([created, replace(deleted, end=4.5), missing])
    assert stale_strict_reads([created, replace(unknown, start=6), missing])
    again = write(3, 3.2, 3.5, method="undelete")
    assert stale_strict_reads([created, deleted, again, missing])
    assert not stale_strict_reads([created, deleted, replace(again, end=4.5), missing])


def test_a_live_read_after_an_acknowledged_delete_is_stale() -> None:
    assert stale_strict_reads([write(1, 0, 1), write(2, 2, 3, method="delete"), read(1, 4, 5)])


@pytest.mark.parametrize(
    "unjudged",
    [
        replace(write(4, 6, 7), revision=None),
        replace(write(4, 6, 7), request_id=None),
        replace(read(4, 8, 9), revision=None),
    ],
)
def test_an_answer_that_cannot_be_judged_is_no_pass(unjudged: Call) -> None:
    assert counts(audit([*CALLS, unjudged], EVENTS, ROWS)) == {"unjudged": 1}


def test_stores_that_differ_and_records_without_one_owner_are_found() -> None:
    assert counts(audit(CALLS, EVENTS, [ROWS[0], replace(ROWS[1], digest="d2")])) == {"diverged": 1}
    both = audit(CALLS, EVENTS, [row("A", 4, "A"), row("B", 4, "B")])
    assert counts(both) == {"diverged": 1, "misowned": 1}
    assert "['A', 'B']" in both.misowned.offenders[0]
    nobody = audit([], [], [row("A", 4, "B"), row("B", 4, "A")])
    assert "no store" in nobody.misowned.offenders[0]
    elsewhere = replace(row("B", 1), name="sandboxes/two")
    assert counts(audit([], [], [*ROWS, elsewhere])) == {"diverged": 1}


def test_the_count_is_whole_and_the_list_of_offenders_is_bounded() -> None:
    writes = [write(n, n, n + 0.5) for n in range(1, 101)]
    findings = audit(writes, [], [row("A", 100), row("B", 100)])
    assert findings.lost.count == 100
    assert len(findings.lost.offenders) == MAX_OFFENDERS


@given(st.lists(st.sampled_from(["write", "retry", "release", "read"]), min_size=1, max_size=30), st.data())
def test_a_sequential_run_is_clean_until_one_event_is_taken_away(steps: list[str], data: st.DataObject) -> None:
    calls, events, revision = [write(1, 0, 0.5, method="create")], [event(1, 1)], 1
    written = [1]
    for at, step in enumerate(steps, start=1):
        if step == "read":
            calls.append(read(written[-1], at, at + 0.5))
        elif step == "retry":
            calls.append(write(written[-1], at, at + 0.5))
        else:
            revision += 1
            events.append(event(revision, *(written if step == "release" else [revision])))
        if step == "write":
            written.append(revision)
            calls.append(write(revision, at, at + 0.5))
    rows = [row("A", revision), row("B", revision)]
    assert audit(calls, events, rows).ok
    gone = data.draw(st.sampled_from(written))
    findings = audit(calls, [e for e in events if e.version != (0, gone)], rows)
    assert findings.lost.count == 1
    assert f"(0, {gone})" in findings.lost.offenders[0]

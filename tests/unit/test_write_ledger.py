"""The ledger of acknowledged writes: losses, checks, and counters that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ownership.model import Store, Version
from services.router.core.write_ledger import (
    Acknowledged,
    Ledger,
    LedgerCounts,
    LedgerLimits,
    Loss,
    StoreRow,
    is_sampled,
    loss_of,
)

KEY = "sandboxes/one"
THIS, OTHER = b"this", b"other"
LIMITS = LedgerLimits(permille=1000, capacity=3, settle_seconds=10.0, again_seconds=60.0)


def write(revision: int = 5, key: str = KEY, *, schema_version: int = 0) -> Acknowledged:
    return Acknowledged(key, f"request-{revision}", "update", Store.B, revision, THIS, schema_version, 1000.0)


def row(
    store: Store, version: tuple[int, int], *, wrote: int, owned: bool = False, content: bytes = THIS, schema: int = 2
) -> StoreRow:
    return StoreRow(store, owned, Version(*version), wrote, content, schema)


A_OLD = row(Store.A, (0, 4), wrote=4, content=OTHER)
B_HAS = row(Store.B, (0, 5), wrote=5, owned=True)
B_OLD = row(Store.B, (0, 4), wrote=4, owned=True)

CASES = [
    ("the owner has it and the replica does not yet", [A_OLD, B_HAS], None),
    ("it was handed over since", [row(Store.A, (0, 6), wrote=5, owned=True), row(Store.B, (0, 6), wrote=5)], None),
    ("it is on its way", [A_OLD, row(Store.B, (0, 6), wrote=5)], None),
    ("a later write took its place", [row(Store.B, (0, 7), wrote=7, owned=True, content=OTHER)], None),
    ("a seizure raised the term", [row(Store.A, (2, 6), wrote=5, owned=True), B_HAS], None),
    ("no store has a row", [], Loss.MISSING),
    ("the owner went back in time", [row(Store.A, (0, 5), wrote=5), B_OLD], Loss.OLDER),
    ("the seizing store lacks it", [row(Store.A, (2, 5), wrote=4, owned=True), B_HAS], Loss.OLDER),
    ("only a name was handed over", [row(Store.A, (0, 1), wrote=0, content=b"")], Loss.OLDER),
    ("somebody has changed the row by hand", [B_HAS._replace(content=OTHER)], Loss.CHANGED),
]


@pytest.mark.parametrize(("rows", "loss"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_owner_must_have_the_write_or_a_later_one(rows: list[StoreRow], loss: Loss | None) -> None:
    assert loss_of(write(), rows) is loss


def test_content_of_another_schema_version_is_not_compared() -> None:
    assert loss_of(write(schema_version=1), [B_HAS._replace(content=OTHER)]) is None
    assert loss_of(write(schema_version=2), [B_HAS._replace(content=OTHER)]) is Loss.CHANGED


def test_a_write_is_looked_at_when_it_is_old_enough_and_then_from_time_to_time() -> None:
    ledger = Ledger(LIMITS)
    ledger.note(write(), 100.0)
    assert ledger.due(109.9, 9) == []
    assert ledger.due(110.0, 9) == [write()]
    assert ledger.look(write(), [B_HAS], 110.0, 1010.0) is None
    assert (ledger.counts, ledger.known) == (LedgerCounts(sampled=1, checked=1), 1)
    assert ledger.due(169.9, 9) == []
    assert ledger.due(170.0, 9) == [write()]


def test_one_look_that_does_not_find_it_is_not_believed() -> None:
    ledger = Ledger(LIMITS)
    ledger.note(write(), 0.0)
    assert ledger.look(write(), [B_OLD], 10.0, 1010.0) is None
    assert ledger.look(write(), [B_HAS], 11.0, 1011.0) is None
    assert ledger.look(write(), [B_OLD], 71.0, 1071.0) is None
    assert ledger.counts == LedgerCounts(sampled=1, checked=1)


@pytest.mark.parametrize("found_first", [False, True])
def test_the_second_look_makes_it_a_finding_and_only_one(*, found_first: bool) -> None:
    ledger = Ledger(LIMITS)
    ledger.note(write(), 0.0)
    if found_first:
        ledger.look(write(), [B_HAS], 10.0, 1010.0)
    assert ledger.look(write(), [B_OLD], 80.0, 1080.0) is None
    assert ledger.due(80.0, 9) == [write()], "it must not wait long for the second look"
    finding = ledger.look(write(), [B_OLD], 81.0, 1081.0)
    assert finding is not None
    assert (finding.loss, finding.write, finding.rows, finding.found_seconds) == (
        Loss.OLDER,
        write(),
        (B_OLD,),
        1081.0,
    )
    assert ledger.look(write(), [B_OLD], 82.0, 1082.0) is None
    assert (list(ledger.findings), ledger.counts) == ([finding], LedgerCounts(sampled=1, checked=1, lost=1))


def test_of_one_record_the_newest_write_is_kept_in_whatever_order_answers_come() -> None:
    ledger = Ledger(LIMITS)
    for revision in (5, 7, 7, 6):
        ledger.note(write(revision), 0.0)
    assert ledger.due(10.0, 9) == [write(7)]
    assert ledger.counts == LedgerCounts(sampled=4, superseded=3, waiting=1)


@pytest.mark.parametrize(("seconds", "doubled"), [(0.0, 1), (599.0, 1), (600.0, 0)])
def test_two_answers_to_one_request_with_different_revisions_are_one_effect_too_many(
    seconds: float, doubled: int
) -> None:
    ledger = Ledger(LIMITS)
    again = replace(write(7), request_id=write(5).request_id, time_seconds=write(5).time_seconds + seconds)
    for one in (write(5), write(5), again):
        ledger.note(one, 0.0)
    assert ledger.counts.doubled == doubled


def test_a_later_write_of_a_record_that_was_found_is_looked_at_like_any_other() -> None:
    ledger = Ledger(LIMITS)
    ledger.note(write(5), 0.0)
    ledger.look(write(5), [B_HAS], 10.0, 1010.0)
    ledger.note(write(6), 20.0)
    assert ledger.look(write(5), [], 30.0, 1030.0) is None, "it is another write now"
    assert ledger.due(30.0, 9) == [write(6)]
    assert ledger.counts == LedgerCounts(sampled=2, checked=1, waiting=1)


def test_without_room_the_oldest_go_and_rather_those_that_were_found() -> None:
    ledger = Ledger(LIMITS)
    for name in "abc":
        ledger.note(write(key=name), 0.0)
    ledger.look(write(key="b"), [B_HAS], 10.0, 1010.0)
    ledger.note(write(key="d"), 10.0)
    assert [one.key for one in ledger.due(20.0, 9)] == ["a", "c", "d"]
    assert ledger.counts == LedgerCounts(sampled=4, checked=1, waiting=3)
    ledger.note(write(key="e"), 10.0)
    assert [one.key for one in ledger.due(20.0, 9)] == ["c", "d", "e"]
    assert ledger.counts == LedgerCounts(sampled=5, checked=1, dropped=1, waiting=3)


def test_what_nobody_can_tell_of_now_does_not_stand_in_the_way() -> None:
    ledger = Ledger(LIMITS)
    first, second = write(1, "a"), write(1, "b")
    ledger.note(first, 0.0)
    ledger.note(second, 1.0)
    assert ledger.due(11.0, 1) == [first]
    ledger.put_off(first, 11.0)
    assert ledger.due(11.0, 1) == [second]
    assert ledger.due(20.9, 9) == [second]
    assert ledger.due(21.0, 9) == [second, first]
    rows = [B_HAS._replace(write_revision=1)]
    assert ledger.look(first, rows, 21.0, 0.0) is None and ledger.known == 1
    assert ledger.due(81.0, 9) == [second, first]
    ledger.put_off(first, 81.0)
    assert ledger.due(140.9, 9) == [second]
    ledger.put_off(write(7, "a"), 200.0)
    assert ledger.due(141.0, 9) == [second, first], "of a write that is not kept any more nothing is put off"
    assert ledger.counts == LedgerCounts(sampled=2, checked=1, waiting=1)


def test_the_sample_is_the_same_everywhere_and_about_as_large_as_it_should_be() -> None:
    ids = [f"request-{number}" for number in range(5000)]
    assert not any(is_sampled(one, 0) for one in ids)
    assert all(is_sampled(one, 1000) for one in ids)
    tenth = [one for one in ids if is_sampled(one, 100)]
    assert 400 < len(tenth) < 600
    assert set(tenth) < {one for one in ids if is_sampled(one, 200)}


@given(st.lists(st.tuples(st.sampled_from(["note", "found", "lost"]), st.sampled_from("abcde"), st.integers(1, 5))))
def test_its_counts_add_up(steps: list[tuple[str, str, int]]) -> None:
    ledger = Ledger(replace(LIMITS, settle_seconds=0.0, again_seconds=0.0))
    for now, (what, key, revision) in enumerate(steps):
        if what == "note":
            ledger.note(write(revision, key), now)
        for one in ledger.due(now, 2) if what != "note" else []:
            ledger.look(one, [B_HAS._replace(write_revision=one.revision)] if what == "found" else [], now, now)
    counts = ledger.counts
    assert counts.sampled == counts.checked + counts.superseded + counts.dropped + counts.waiting
    assert len(ledger.findings) == counts.lost <= counts.checked
    assert counts.waiting + ledger.known <= LIMITS.capacity

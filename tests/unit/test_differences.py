"""Differences between two rows of one record: their kinds, their confirmation, and the report."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ownership.model import NEVER, Store, Version
from services.router.core.differences import (
    KEPT_DIFFERENCES,
    Difference,
    Findings,
    Kind,
    RowView,
    difference,
    is_believed,
    is_repaired,
)

A, B = Store.A, Store.B
KEY = "sandboxes/x"


def look(revision: int, owner: Store, *, released: bool = False, content: int = 7, kept: int | None = None) -> RowView:
    """Look at a row in this version, written by its owner, or released to it."""
    written = Version(0, revision - 1) if released else Version(0, revision)
    content = content + revision * 100 + (owner is B) * 10
    return RowView(Version(0, revision), owner, written, content if kept is None else kept, content)


def kind_of(a: RowView | None, b: RowView | None) -> tuple[Kind, Store] | None:
    found = difference(KEY, (a, b))
    return None if found is None else (found.kind, found.newer)


def found(a: RowView | None, b: RowView | None) -> Difference:
    made = difference(KEY, (a, b))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (None, None, None),
        (look(3, A), look(3, A), None),
        (look(3, B, released=True), look(3, B, released=True), None),
        (look(3, A), None, (Kind.MISSING, A)),
        (None, look(3, B), (Kind.MISSING, B)),
        (look(3, B, released=True), None, (Kind.MISSING, A)),
        (look(1, B)._replace(write_version=NEVER), None, (Kind.MISSING, A)),
        (look(3, B), None, (Kind.EXTRA, A)),
        (None, look(3, A), (Kind.EXTRA, B)),
        (look(3, A, released=True), None, (Kind.MISSING, A)),
        (look(4, A), look(3, A), (Kind.STALE, A)),
        (look(4, B, released=True), look(3, A), (Kind.STALE, A)),
        (look(3, B, released=True), look(4, B), (Kind.STALE, B)),
        (look(4, B), look(3, A), (Kind.OWNER, A)),
        (look(3, A), look(4, A), (Kind.OWNER, B)),
        (look(3, A), look(4, B), (Kind.OWNER, B)),
        (look(4, A), look(3, B), (Kind.OWNER, A)),
        (look(3, A), look(3, B), (Kind.OWNER, A)),
        (look(3, A), look(3, A, content=8), (Kind.CORRUPT, A)),
        (look(3, B, content=8), look(3, B), (Kind.CORRUPT, B)),
        (look(3, A, kept=1), look(3, A), (Kind.CORRUPT, A)),
        (look(4, A, kept=1), look(3, A), (Kind.CORRUPT, A)),
        (look(3, A), look(4, A, kept=1), (Kind.CORRUPT, B)),
    ],
)
def test_two_rows_say_how_they_differ(
    a: RowView | None, b: RowView | None, expected: tuple[Kind, Store] | None
) -> None:
    assert kind_of(a, b) == expected


OLD, NEW, NEWER = look(3, A), look(4, A), look(5, A)


@pytest.mark.parametrize(
    ("first", "second", "believed"),
    [
        ((NEW, OLD), (NEW, OLD), True),
        ((NEW, None), (NEW, None), True),
        ((NEW, None), (NEW, OLD), True),
        ((NEW, OLD), (NEWER, OLD), True),
        ((NEW, OLD), (NEWER, NEW), False),
        ((NEW, OLD), (NEW, NEW), False),
        ((NEW, None), (NEWER, NEW), False),
        ((OLD, look(3, A, content=8)), (OLD, look(3, A, content=8)), True),
        ((OLD, look(3, A, content=8)), (NEW, look(3, A, content=8)), False),
        ((OLD, look(3, B)), (OLD, look(3, B)), True),
        ((OLD, look(4, B)), (look(4, B, released=True), look(4, B)), False),
        ((OLD, look(4, B)), (OLD, look(4, B)), True),
        ((OLD, look(4, B)), (OLD, look(5, B)), True),
    ],
)
def test_a_difference_is_believed_when_what_was_newer_has_not_arrived(
    first: tuple[RowView | None, RowView | None], second: tuple[RowView | None, RowView | None], believed: bool
) -> None:
    assert is_believed(found(*first), difference(KEY, second)) is believed


def test_what_is_corrupt_is_mended_by_a_higher_version_alone() -> None:
    one = found(OLD, look(3, A, content=8))
    assert one.is_handed_over
    assert not is_repaired(one, (OLD, OLD))
    assert not is_repaired(one, (NEW, NEW._replace(digest=1)))
    assert is_repaired(one, (NEW, NEW))
    stale = found(NEW, OLD)
    assert not is_repaired(stale, (NEW, OLD))
    assert is_repaired(stale, (NEWER, NEW))


def test_a_row_that_was_raised_by_hand_above_its_owners_is_not_handed_over_and_the_report_says_so() -> None:
    raised = found(OLD, look(4, A, kept=1))
    assert not raised.is_handed_over
    findings = Findings()
    findings.add([raised], named=KEY)
    assert findings.named == "it is CORRUPT, but its owner does not have its newest version"


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (found(OLD, look(3, A, content=8)), "CORRUPT"),
        (found(NEW, OLD), "it is STALE, not CORRUPT"),
        (found(look(3, A), None), "it is MISSING, not CORRUPT"),
    ],
)
def test_of_a_record_that_a_person_calls_corrupt_the_report_says_what_it_is(one: Difference, said: str) -> None:
    findings = Findings()
    findings.add([one], named="sandboxes/another")
    assert findings.named == ""
    findings.add([one], named=KEY)
    assert Findings.from_json(findings.to_json()).named == said


LOOKS = st.builds(
    lambda revision, owner, released, content, damaged: look(
        revision, owner, released=released, content=content, kept=1 if damaged else None
    ),
    st.integers(2, 4),
    st.sampled_from(Store),
    st.booleans(),
    st.integers(7, 8),
    st.booleans(),
)
PAIRS = st.tuples(st.none() | LOOKS, st.none() | LOOKS)


@given(PAIRS)
def test_rows_agree_exactly_when_they_are_the_same_and_whole(pair: tuple[RowView | None, RowView | None]) -> None:
    a, b = pair
    both = {one and (one.version, one.owner, one.content) for one in pair}
    agree = len(both) == 1 and not any(one.is_damaged for one in pair if one)
    assert (difference(KEY, (a, b)) is None) is agree


@given(PAIRS, PAIRS)
def test_what_arrived_is_never_believed_to_lack(
    first: tuple[RowView | None, RowView | None], second: tuple[RowView | None, RowView | None]
) -> None:
    one, two = difference(KEY, first), difference(KEY, second)
    if one is None or one.kind not in (Kind.MISSING, Kind.STALE):
        return
    older = second[0 if one.newer is B else 1]
    if two is not None and older is not None and older.version >= one.version:
        assert not is_believed(one, two)


def test_a_report_counts_all_and_names_the_first_ones() -> None:
    findings = Findings(records=1000, buckets_walked=3)
    stale = [Difference(f"sandboxes/{number}", Kind.STALE, A, (NEW, OLD)) for number in range(KEPT_DIFFERENCES + 5)]
    findings.add(stale)
    findings.add([found(OLD, look(3, A, content=8))])
    findings.count_repaired(stale[1:])
    shown = json.loads(findings.to_json())
    assert (shown["different"], shown["repaired"], shown["left"]) == (106, 104, 2)
    assert shown["found"] == {"MISSING": 0, "EXTRA": 0, "STALE": 105, "CORRUPT": 1, "OWNER": 0}
    assert len(shown["differences"]) == KEPT_DIFFERENCES
    assert [one["repaired"] for one in shown["differences"][:2]] == [False, True]
    assert shown["differences"][0]["A"]["version"] == "0-4"
    assert Findings.from_json(findings.to_json()) == findings

"""Effects of a seizure on buckets, rows, and records of older and newer terms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.ownership.limits import MAX_BASES
from libs.ownership.model import BucketOwner, Record, Row, Store, Version, bases_of, bases_text, visible
from libs.ownership.terms import (
    Fate,
    SeizureRefused,
    adopted_bucket,
    decide_apply,
    is_share,
    next_term,
    seized_bucket,
    seized_row,
    seizer_of,
    take_term,
    was_missed,
)

A, B = Store.A, Store.B
BUCKET = BucketOwner(7, 0, 3, B)
SEIZED = BucketOwner(7, 2, 4, A)


def row(term: int, revision: int, owner: Store = B, *bases: tuple[int, int]) -> Row:
    version = Version(term, revision)
    return Row("k", version, owner, version, True, b"p", 1, bases=tuple(Version(*base) for base in bases))


def record(of: Row) -> Record:
    return Record(of, (), of.owner, 0.0)


def test_even_terms_are_a_s_and_odd_ones_b_s() -> None:
    assert [seizer_of(term) for term in range(4)] == [A, B, A, B]
    assert [next_term(term, A) for term in range(4)] == [2, 2, 4, 4]
    assert [next_term(term, B) for term in range(4)] == [1, 3, 3, 5]


def test_a_seizure_raises_the_term_and_the_version_of_the_bucket() -> None:
    assert seized_bucket(BUCKET, A, 2) == BucketOwner(7, 2, 4, A)


@pytest.mark.parametrize(("me", "term"), [(A, 1), (A, 0), (B, 2), (A, -2)])
def test_a_term_of_the_other_store_or_an_old_one_is_refused(me: Store, term: int) -> None:
    with pytest.raises(SeizureRefused, match=f"term {term} is not valid"):
        seized_bucket(BUCKET, me, term)


def test_a_seized_row_keeps_its_last_write_and_says_what_it_was() -> None:
    before = row(0, 5)
    after = seized_row(before, A, 2)
    assert (after.version, after.owner, after.bases) == ((2, 6), A, ((0, 5),))
    assert (after.write_version, after.payload) == (before.write_version, before.payload)
    assert after.version > replace(before, version=Version(0, 99)).version


def test_a_row_of_a_lower_term_is_hidden() -> None:
    assert visible(row(0, 5), SEIZED) is None
    assert visible(row(2, 1), SEIZED) == row(2, 1)
    assert visible(None, SEIZED) is None


@pytest.mark.parametrize(
    ("arrives", "here", "fate"),
    [
        (row(0, 5), row(2, 6, A, (0, 5)), Fate.OLD),
        (row(0, 6), row(2, 6, A, (0, 5)), Fate.CONFLICT),
        (row(0, 6), row(2, 1, A), Fate.CONFLICT),
        (row(0, 1), None, Fate.CONFLICT),
        (row(2, 7), row(2, 6), Fate.NEWER),
        (row(2, 6), row(2, 6), Fate.OLD),
        (row(2, 1), None, Fate.NEWER),
    ],
)
def test_what_becomes_of_a_record_in_a_bucket_that_was_seized(arrives: Row, here: Row | None, fate: Fate) -> None:
    verdict = decide_apply(record(arrives), here, SEIZED, A)
    assert (verdict.fate, verdict.bucket_owner, verdict.journal) == (fate, SEIZED, None)
    assert verdict.learn is (fate is not Fate.CONFLICT)


@pytest.mark.parametrize("here", [None, row(0, 5), row(2, 6, A, (0, 5))])
def test_the_other_store_leaves_late_records_to_the_seizer(here: Row | None) -> None:
    verdict = decide_apply(record(row(0, 6)), here, SEIZED, B)
    assert (verdict.fate, verdict.journal, verdict.learn) == (Fate.OLD, None, False)


def test_without_a_seizure_the_higher_version_stays() -> None:
    assert decide_apply(record(row(0, 2)), row(0, 1), BUCKET, B).fate is Fate.NEWER
    assert decide_apply(record(row(0, 1)), row(0, 1), BUCKET, A).fate is Fate.OLD
    assert decide_apply(record(row(0, 1)), None, BUCKET, A).bucket_owner == BUCKET


def test_a_record_of_a_higher_term_brings_the_term() -> None:
    verdict = decide_apply(record(row(2, 6, A, (0, 5))), row(0, 5), BUCKET, B)
    assert (verdict.fate, verdict.journal) == (Fate.NEWER, None)
    assert verdict.bucket_owner == BucketOwner(7, 2, 0, A)
    assert take_term(SEIZED, 2) == SEIZED


@pytest.mark.parametrize("bases", [(), ((0, 4),), ((0, 4), (1, 8))])
def test_a_row_that_the_seizer_had_not_seen_is_journaled_before_it_is_replaced(bases: list[tuple[int, int]]) -> None:
    here = row(0, 5)
    assert decide_apply(record(row(2, 9, A, *bases)), here, SEIZED, B).journal == here


@pytest.mark.parametrize("bases", [((0, 5),), ((0, 5), (1, 8)), ((0, 6), (1, 8))])
def test_a_row_that_any_seizure_has_seen_is_replaced_without_a_trace(bases: list[tuple[int, int]]) -> None:
    verdict = decide_apply(record(row(2, 9, A, *bases)), row(0, 5), SEIZED, B)
    assert (verdict.fate, verdict.journal) == (Fate.NEWER, None)


def test_what_the_first_of_two_seizures_had_not_seen_is_a_conflict_after_the_second_too() -> None:
    here = row(4, 9, A, (0, 4), (2, 8))
    again = BucketOwner(7, 4, 9, A)
    assert decide_apply(record(row(0, 5)), here, again, A).fate is Fate.CONFLICT
    assert decide_apply(record(row(0, 4)), here, again, A).fate is Fate.OLD
    assert decide_apply(record(row(2, 8)), here, again, A).fate is Fate.OLD
    assert decide_apply(record(row(1, 7)), here, again, A).fate is Fate.CONFLICT


def test_a_record_keeps_the_last_bases_and_of_a_term_without_one_a_person_looks() -> None:
    here = row(0, 1)
    for term in range(2, 2 * MAX_BASES + 4, 2):
        here = seized_row(here, A, term)
    assert len(here.bases) == MAX_BASES and here.bases[-1] == (here.version.term - 2, here.version.revision - 1)
    assert was_missed(Version(0, 1), here.bases) and not was_missed(here.bases[0], here.bases)


@pytest.mark.parametrize("bases", [(), (Version(0, 12),), (Version(0, 12), Version(2, 31))])
def test_bases_are_kept_as_text(bases: tuple[Version, ...]) -> None:
    assert bases_of(bases_text(bases)) == bases
    assert bases_of(None) == ()


def test_a_bucket_is_of_another_s_share_when_that_may_own_anything_of_it() -> None:
    assert is_share(BUCKET, A, 0, 0)
    assert is_share(SEIZED, A, 3, 2)
    assert not is_share(SEIZED, A, 3, 3)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (BucketOwner(7, 0, 4, A), True),
        (BucketOwner(7, 0, 3, A), False),
        (BucketOwner(7, 0, 2, A), False),
        (BucketOwner(7, 0, 4, B), False),
        (BucketOwner(7, 2, 4, A), False),
    ],
)
def test_a_bucket_is_adopted_by_the_store_that_it_names_in_a_higher_version_of_its_term(
    offered: BucketOwner, taken: bool
) -> None:
    """Of an equal version two stores could each believe to be the owner."""
    assert adopted_bucket(offered, BUCKET, A) is taken

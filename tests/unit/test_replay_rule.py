"""A replay never makes an owner: the rule as a table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from libs.ownership.model import Store, Version
from services.router.core.replay import Claim, Give, decide_replay, next_change

A, B = Store.A, Store.B


def claim(version: tuple[int, int], owner: Store) -> Claim:
    return Claim(Version(*version), owner)


CASES: Sequence[tuple[Claim, Claim | None, Give]] = [
    (claim((0, 1), A), None, Give.EVENT),
    (claim((0, 2), B), None, Give.NOTHING),
    (claim((0, 2), B), claim((0, 1), A), Give.NOTHING),
    (claim((0, 2), B), claim((0, 1), B), Give.NOTHING),
    (claim((0, 2), B), claim((0, 2), B), Give.OWNERSHIP),
    (claim((0, 2), B), claim((0, 6), A), Give.COPY),
    (claim((0, 2), B), claim((0, 6), B), Give.OWNERSHIP),
    (claim((0, 2), B), claim((2, 1), A), Give.COPY),
    (claim((0, 6), A), claim((0, 6), A), Give.EVENT),
    (claim((0, 7), A), claim((0, 6), A), Give.EVENT),
    (claim((0, 7), A), claim((0, 6), B), Give.EVENT),
    (claim((1, 3), B), claim((0, 9), A), Give.NOTHING),
]


@pytest.mark.parametrize(("event", "other", "given"), CASES)
def test_what_a_replay_gives_to_b(event: Claim, other: Claim | None, given: Give) -> None:
    assert decide_replay(event, other, B) is given


def test_an_owner_is_made_only_by_the_other_store_s_row() -> None:
    """Over all small versions and owners: an event that names the target as owner is applied only in the version of
    that row."""
    versions = [Version(term, revision) for term in (0, 1, 2) for revision in (1, 2, 3)]
    claims = [Claim(version, owner) for version in versions for owner in Store]
    for event in claims:
        for other in [None, *claims]:
            given = decide_replay(event, other, B)
            row = event if given is Give.EVENT else other
            if given is Give.NOTHING:
                continue
            assert row is not None
            assert row.owner is not B or (other is not None and row == other)
            assert row.version >= event.version, "the higher one"


def test_the_first_change_of_an_owner_adds_one_to_the_revision() -> None:
    assert next_change(Version(2, 7)) == (2, 8)

"""Time between two stores, by the times in their records."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ownership.model import Store, Version
from services.router.core.ages import Behind, Validation
from services.router.core.differences import RowView


def look(written: float | None, revision: int = 1) -> RowView:
    return RowView(Version(0, revision), Store.A, Version(0, revision), revision, revision, written)


def test_each_query_counts_what_it_asks_for() -> None:
    found = Validation(records_a=5, records_b=4)
    found.add("only-a", (look(1.0), None))
    found.add("only-a-too", (look(1.0), None))
    found.add("only-b", (None, look(1.0)))
    found.add("same", (look(1.0), look(1.0)))
    found.add("b-behind", (look(130.0, 2), look(100.0)))
    found.add("silent", (look(None, 2), look(None)))
    shown = json.loads(found.to_json())
    counts = ("only_in_a", "only_in_b", "different", "unknown", "in_both")
    assert [shown[name] for name in counts] == [2, 1, 2, 1, 3]
    behind = shown["b_behind"]
    assert (behind["records"], behind["worst"], behind["worst_seconds"]) == (1, "b-behind", 30.0)
    assert (behind["average_seconds"], shown["average_seconds"]) == (10.0, -10.0)
    assert shown["a_behind"]["records"] == 0
    assert Validation.from_json(found.to_json()) == found


@given(st.lists(st.floats(0.001, 1e6), max_size=30), st.integers(0, 3000))
def test_the_99th_percentile_is_that_of_all_records_those_that_are_equal_among_them(
    ages: list[float], equal: int
) -> None:
    behind = Behind()
    for age in ages:
        behind.add("x", age)
    everything = sorted([0.0] * equal + ages)
    if not everything:
        assert behind.p99_seconds(0) == 0.0
        return
    # The smallest value that at least 99 % do not exceed.
    exact = next(age for place, age in enumerate(everything, 1) if place >= 0.99 * len(everything) - 1e-9)
    assert exact * 0.9999 <= behind.p99_seconds(len(everything)) <= exact * 1.05
    assert behind.total_seconds == pytest.approx(sum(ages))

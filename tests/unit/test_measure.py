"""Slots of time, sums over routers, and how sure a quantile is."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from libs.ownership.model import Store
from libs.telemetry.latency import Recent, bounds, bucket_edges, bucket_of_seconds, ranks
from libs.telemetry.lateness import LATE_SECONDS
from services.router.core.measure import (
    ERROR_MINUTES,
    LEAST_A_MINUTE,
    MINUTES,
    PERIODS,
    SECONDS,
    Counts,
    Meter,
    Parity,
    ShadowCounts,
    merged,
    total,
)

A, B = Store.A, Store.B


def fed(meter: Meter, store: Store, calls: int, now: float, *, seconds: float = 0.002, faults: int = 0) -> None:
    for number in range(calls):
        meter.add(store, "update", False, seconds, number < faults, now)


def test_calls_are_counted_in_the_second_they_end_in_and_a_second_counts_when_it_is_over() -> None:
    meter = Meter()
    fed(meter, B, 3, 10.2, faults=1)
    fed(meter, A, 2, 10.9)
    assert meter.seconds(10.99) == ()
    fed(meter, B, 4, 12.0)
    assert meter.seconds(13.0) == ((Counts(), Counts(4)), (Counts(), Counts()), (Counts(2), Counts(3, 1)))


def test_a_denial_shows_that_a_store_is_there_but_is_no_call() -> None:
    meter = Meter()
    meter.denied(A, 5.0)
    ((a, b),) = meter.seconds(6.0)
    assert (a, a.answered, a.rate, b) == (Counts(0, 0, 1), 1, 0.0, Counts())


def test_a_short_deadline_that_passes_is_no_fault_of_a_store_that_answers_others() -> None:
    meter = Meter()
    for call in range(100):
        now = 10 + call * 0.1
        fed(meter, B, 1, now)
        assert not meter.is_late(B, now - 0.09, now + 0.05)


def test_a_store_that_had_a_second_for_one_attempt_is_late_whatever_it_answers_others() -> None:
    meter = Meter()
    fed(meter, B, 1, 11.9)
    assert meter.is_late(B, 12.0 - LATE_SECONDS, 12.0)
    assert not meter.is_late(B, 11.95, 12.09), "that one had its answers meanwhile"


def test_a_store_that_answers_nothing_for_a_second_is_late_for_the_shortest_deadline() -> None:
    meter = Meter()
    fed(meter, B, 1, 10.0)
    late = [meter.is_late(B, 100 + call * 0.1, 100.14 + call * 0.1) for call in range(20)]
    assert late == [call * 0.1 + 0.14 >= LATE_SECONDS for call in range(20)]
    meter.add(B, "update", False, None, True, 103.0)
    assert meter.is_late(B, 103.0, 103.14), "a fault is no answer"
    meter.denied(B, 103.2)
    assert not meter.is_late(B, 103.2, 103.34)
    assert not meter.is_late(A, 103.2, 103.34), "each store for itself"


def test_what_is_kept_is_bounded_whatever_happens() -> None:
    meter = Meter()
    for second in range(3 * 3600):
        fed(meter, B, 1, float(second))
    assert meter.recent(B, 3 * 3600.0 - 1) == Counts(60 * ERROR_MINUTES)
    assert len(meter.seconds(3 * 3600.0)) == SECONDS
    assert len(meter._minutes) == MINUTES


def test_after_a_long_silence_nothing_is_recent() -> None:
    meter = Meter()
    fed(meter, B, 50, 7.0)
    later = 7.0 + 60 * MINUTES
    assert total(b for _, b in meter.seconds(later)) == Counts()
    assert (meter.recent(B, later), meter.parities(later)) == (Counts(), ())


def test_latencies_are_compared_of_one_operation_and_only_in_minutes_that_both_stores_served() -> None:
    meter = Meter()
    fed(meter, A, LEAST_A_MINUTE, 10.0, seconds=0.001)
    fed(meter, B, LEAST_A_MINUTE - 1, 10.0, seconds=0.001)
    assert meter.parities(10.0) == ()
    fed(meter, A, 100, 70.0, seconds=0.004)
    fed(meter, B, 30, 70.0, seconds=0.008, faults=10)
    meter.add(B, "get", True, 0.001, False, 70.0)
    for _ in range(40):
        meter.compared(A, "get", True, 0.002, 130.0)
        meter.add(B, "get", True, 0.001, False, 130.0)
    get, update = meter.parities(130.0)
    four, eight = bucket_of_seconds(0.004), bucket_of_seconds(0.008)
    assert update == Parity("update", False, Counter({four: 100}), Counter({eight: 20}))
    assert (get.is_read, get.a.total(), get.b.total()) == (True, 40, 40)
    assert meter.recent(A, 130.0) == Counts(LEAST_A_MINUTE + 100), "what no client waited for is no call"


def test_measurements_of_routers_add_up() -> None:
    one, other = (Parity("get", True, Counter({3: n}), Counter({4: n})) for n in (1, 2))
    assert merged([one, other, Parity("put", False, Counter({1: 1}), Counter())]) == (
        Parity("get", True, Counter({3: 3}), Counter({4: 3})),
        Parity("put", False, Counter({1: 1}), Counter()),
    )
    assert total([Counts(1, 1, 1), Counts(2, 0, 3)]) == Counts(3, 1, 4)
    assert ShadowCounts(2, 1, dropped=1).plus(ShadowCounts(1, mismatch=1)) == ShadowCounts(3, 1, mismatch=1, dropped=1)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1e-5, 0.00123, 0.5, 30.0])
def test_a_latency_lies_within_the_edges_of_its_bucket(seconds: float) -> None:
    low, high = bucket_edges(bucket_of_seconds(seconds))
    assert low <= seconds <= high
    assert not low or high / low == pytest.approx(2 ** (1 / 16))


@pytest.mark.parametrize(("samples", "upper"), [(298, None), (299, 299), (300, 300)])
def test_an_upper_bound_of_p99_needs_299_samples(samples: int, upper: int | None) -> None:
    """0.99^299 is the first power below 5 %: the chance that none of 299 samples is above the quantile."""
    assert ranks(samples)[1] == upper


def test_without_samples_nothing_is_bounded() -> None:
    assert bounds(Counter()) == (0, None, None)


@pytest.mark.parametrize("samples", [300, 1000, 20_000])
def test_each_bound_holds_in_about_95_of_100_experiments(samples: int) -> None:
    """Exponential latencies with a mean of 10 ms: the true P99 is 46.05 ms."""
    chance = random.Random(7)
    true, too_high, too_low, experiments = 0.0460517, 0, 0, 200
    for _ in range(experiments):
        seen = Counter(bucket_of_seconds(chance.expovariate(100)) for _ in range(min(samples, 2000)))
        found = bounds(seen)
        assert found.lower is not None and found.upper is not None
        too_high += found.lower > true
        too_low += found.upper < true
    assert max(too_high, too_low) <= 0.09 * experiments


def test_more_samples_make_the_bounds_narrower() -> None:
    chance = random.Random(7)
    few, many = (Counter(bucket_of_seconds(chance.expovariate(100)) for _ in range(n)) for n in (400, 40_000))
    (_, low, high), (_, lower, upper) = bounds(few), bounds(many)
    assert None not in (low, high, lower, upper)
    assert upper - lower < high - low  # type: ignore[operator]


def test_latencies_are_kept_for_some_minutes() -> None:
    recent = Recent(2)
    recent.add(0.0, 30.0)
    recent.add(0.1, 61.0)
    assert recent.counts(119.9) == {0: 1, bucket_of_seconds(0.1): 1}
    assert recent.counts(120.0) == {bucket_of_seconds(0.1): 1}
    assert recent.counts(1e6) == {}
    recent.add(0.2, 1e6)
    assert recent.counts(1e6 + 59) == {bucket_of_seconds(0.2): 1}


def test_calls_are_counted_by_operation_and_in_periods_for_people() -> None:
    meter = Meter()
    for now in (0.0, 1.0, 12.0, 12.5):
        meter.add(A, "get" if now < 12 else "list", True, 0.01, now == 1.0, now)
    assert meter.operations(A, 13.0, 60) == {"get": 2, "list": 2}
    assert meter.operations(A, 13.0, 5) == {"list": 2}
    assert meter.periods(13.0) == ((Counts(2, 1), Counts()),), "the second period is not over"
    assert meter.periods(20.0) == ((Counts(2), Counts()), (Counts(2, 1), Counts()))
    assert len(meter.periods(1e6)) == PERIODS

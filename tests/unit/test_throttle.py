"""How fast a job may go while live traffic goes on."""

import pytest

from services.router.core.throttle import LEAST_RATE, Load, Pace, Throttle, ThrottleLimits, suffering

LIMITS = ThrottleLimits(lag_seconds=10.0, latency_seconds=0.5, error_rate=0.01)
WELL = Load(lag_seconds=0.1, latency_seconds=0.01, calls=1000, faults=0)
LATE = WELL._replace(lag_seconds=12.0)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (WELL, ""),
        (Load(), ""),
        (WELL._replace(lag_seconds=10.0, latency_seconds=0.5, faults=10), ""),
        (LATE, "lag 12.0 s is above 10 s"),
        (WELL._replace(latency_seconds=0.6), "P99 of live calls is 600 ms, above 500 ms"),
        (WELL._replace(faults=11), "11 of 1000 live calls failed, which is above 1 %"),
        (Load(None, 3.0, calls=19, faults=19), ""),
        (Load(None, 3.0, calls=20, faults=0), "P99 of live calls is 3000 ms, above 500 ms"),
    ],
)
def test_live_traffic_suffers_above_a_limit_when_there_is_enough_of_it(load: Load, reason: str) -> None:
    assert suffering(load, LIMITS) == reason


@pytest.mark.parametrize("wanted", [0.0, 50.0, 5000.0])
def test_without_trouble_a_job_gets_what_was_asked_for(wanted: float) -> None:
    assert Throttle(LIMITS).look(WELL, wanted, 800.0) == Pace(wanted)


def test_while_live_traffic_suffers_the_rate_halves_down_to_a_least_one_and_says_why() -> None:
    throttle = Throttle(LIMITS)
    rates = []
    for _ in range(8):
        pace = throttle.look(LATE, 0.0, 8000.0)
        rates.append(pace.rate)
        assert pace.reason == f"slowed down to {pace.rate:.0f}/s: lag 12.0 s is above 10 s"
    assert rates == [4000.0, 2000.0, 1000.0, 500.0, 250.0, 125.0, LEAST_RATE, LEAST_RATE]


def test_when_it_is_well_again_the_job_gets_faster_until_it_does_not_use_what_it_gets() -> None:
    throttle = Throttle(LIMITS)
    for _ in range(3):
        throttle.look(LATE, 0.0, 8000.0)
    paces = [throttle.look(WELL, 0.0, 1000.0) for _ in range(7)]
    assert [pace.rate for pace in paces] == [1250.0, 1562.5, 1953.125, 2441.40625, 3051.7578125, 3814.697265625, 0.0]
    assert all(pace.reason.endswith("it gets faster again") for pace in paces[:-1])
    assert paces[-1].reason == ""
    assert throttle.look(WELL, 0.0, 1000.0) == Pace(0.0), "it is off"


def test_a_job_that_had_just_begun_gets_faster_by_and_by_too() -> None:
    throttle = Throttle(LIMITS)
    assert throttle.look(LATE, 0.0, 0.0).rate == LEAST_RATE
    assert throttle.look(WELL, 0.0, 0.0).rate == 1.25 * LEAST_RATE


def test_an_operator_s_rate_is_never_exceeded_on_the_way_up() -> None:
    throttle = Throttle(LIMITS)
    throttle.look(LATE, 400.0, 400.0)
    rates = [throttle.look(WELL, 400.0, 400.0).rate for _ in range(12)]
    assert rates[:3] == [250.0, 312.5, 390.625]
    assert set(rates[3:]) == {400.0}


def test_an_operator_s_rate_below_what_is_left_is_not_called_a_throttle() -> None:
    throttle = Throttle(LIMITS)
    assert throttle.look(LATE, 300.0, 300.0).rate == 150.0
    assert throttle.look(LATE, 90.0, 150.0) == Pace(90.0)

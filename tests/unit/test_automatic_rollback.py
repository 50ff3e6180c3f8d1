"""When traffic goes back to A without a person: the real thresholds, and each of them just missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.router.core.automatic_rollback import Action, Observation, decide, needed_seconds, rolled_back
from services.router.core.measure import Counts
from services.router.core.phase import IllegalMove, Phase, Setting
from services.router.core.thresholds import Limits

KEEP, ROLL_BACK, ALERT = Action.KEEP, Action.ROLL_BACK, Action.ALERT

NOW = Setting(generation=9, phase=Phase.CUTOVER)
NOTHING = Counts()
SEEN = needed_seconds(Limits())
"""Half a minute, and one of its six parts before."""


def window(b: Counts, a: Counts = NOTHING, seconds: int = SEEN) -> list[tuple[Counts, Counts]]:
    return [(a, b)] * seconds


def ruled(seconds: Sequence[tuple[Counts, Counts]], **fields: object) -> Action:
    seen = Observation(NOW, seconds, a_serves=True, last_seconds_ago=None)
    return decide(replace(seen, **fields), Limits()).action  # type: ignore[arg-type]


FAILING = window(Counts(20, 4))
HEALTHY_SECOND = (NOTHING, Counts(20))


def test_a_fifth_of_the_calls_failing_for_half_a_minute_sends_traffic_back() -> None:
    assert ruled(FAILING) is ROLL_BACK


def test_a_dead_b_sends_traffic_back() -> None:
    assert ruled(window(Counts(10, 10))) is ROLL_BACK


def test_the_reason_has_the_figures() -> None:
    verdict = decide(Observation(NOW, FAILING, a_serves=True, last_seconds_ago=None), Limits())
    assert "120 server faults in 600 calls (20.0%) of B's in 30 s" in verdict.reason


@pytest.mark.parametrize(("calls", "ruling"), [(3, KEEP), (4, ALERT)])
def test_too_few_calls_for_a_rollback_call_a_person_if_they_are_enough_for_a_share(calls: int, ruling: Action) -> None:
    """18 and 24 calls in half a minute, all of them faults."""
    seconds = ([(NOTHING, Counts(calls, calls))] + [(NOTHING, NOTHING)] * 4) * 8
    found = decide(Observation(NOW, seconds[:SEEN], a_serves=True, last_seconds_ago=None), Limits())
    assert found.action is ruling
    assert "200" in found.reason


def test_few_calls_without_faults_call_nobody() -> None:
    assert ruled(window(Counts(1))) is KEEP


@pytest.mark.parametrize("calls", [Counts(20, 1), Counts(100, 5), Counts(20)])
def test_a_share_that_is_not_above_five_percent_stays(calls: Counts) -> None:
    assert ruled(window(calls)) is KEEP


def test_just_above_five_percent_goes_back() -> None:
    assert ruled(window(Counts(1000, 51))) is ROLL_BACK


def test_the_half_minute_is_a_whole_one_wherever_it_begins() -> None:
    """29 s of faults are never enough, 31 s always are; all before is well."""
    healthy = [HEALTHY_SECOND] * SEEN
    for length, ruling in ((25, KEEP), (29, KEEP), (30, KEEP), (32, ROLL_BACK), (35, ROLL_BACK)):
        assert ruled([*FAILING[:length], *healthy][:SEEN]) is ruling, length


def test_29_seconds_are_not_enough() -> None:
    assert ruled([*window(Counts(20, 20))[:29], *[HEALTHY_SECOND] * 6]) is KEEP
    assert ruled(FAILING[: SEEN - 1]) is KEEP, "of what was before nothing is known"


def test_199_calls_are_not_enough() -> None:
    few, before = window(Counts(7, 7), seconds=28), window(Counts(7, 7), seconds=5)
    assert ruled([*few, *window(Counts(1, 1), seconds=1), (NOTHING, Counts(2, 2)), *before]) is ALERT
    assert ruled([*few, *window(Counts(2, 2), seconds=2), *before]) is ROLL_BACK


@pytest.mark.parametrize("length", [1, 5, 15, 24])
def test_an_outage_that_is_over_in_time_moves_nothing_however_complete_it_is(length: int) -> None:
    dead = [(NOTHING, Counts(20, 20))] * length
    for start in range(SEEN - length + 1):
        before, after = [HEALTHY_SECOND] * start, [HEALTHY_SECOND] * (SEEN - length - start)
        assert ruled([*before, *dead, *after]) is KEEP, start


def test_a_part_of_the_window_without_calls_is_not_above_the_limit() -> None:
    for silent in range(0, SEEN, 5):
        assert ruled([*FAILING[:silent], *[(NOTHING, NOTHING)] * 5, *FAILING[silent + 5 :]]) is KEEP


@pytest.mark.parametrize(
    ("a", "ruling"),
    [
        (Counts(20), ROLL_BACK),
        (Counts(20, 2), ROLL_BACK),
        (Counts(20, 4), ALERT),
        (Counts(100, 16), ALERT),
        (Counts(100, 15), ROLL_BACK),
        (Counts(20, 20), ALERT),
    ],
)
def test_what_both_stores_suffer_from_is_not_the_fault_of_b(a: Counts, ruling: Action) -> None:
    """The margin is 5 percentage points: B's share is 20 %."""
    assert ruled(window(Counts(20, 4), a)) is ruling


def test_answers_for_the_other_store_show_that_a_is_there() -> None:
    assert ruled(window(Counts(20, 20), Counts(1, 1, denials=9))) is ROLL_BACK
    assert ruled(window(Counts(20, 20), Counts(1, 1))) is ALERT
    denying = [(Counts(10, 10, denials=10), Counts(20, 4)), *FAILING[1:]]
    assert ruled(denying) is ALERT, "half of its 20 answers are faults"


def test_with_few_calls_of_a_its_own_word_counts() -> None:
    few = [(Counts(19, 19), Counts(20, 4)), *FAILING[1:]]
    assert ruled(few) is ROLL_BACK
    assert ruled([(Counts(20, 20), Counts(20, 4)), *FAILING[1:]]) is ALERT, "20 answers are enough to tell"
    assert ruled(few, a_serves=False) is ALERT
    assert ruled(window(Counts(20, 4), Counts(20)), a_serves=False) is ALERT, "nobody is sent to who does not serve"


@pytest.mark.parametrize(("ago", "ruling"), [(None, ROLL_BACK), (599.0, ALERT), (600.0, ROLL_BACK)])
def test_it_happens_once_in_ten_minutes_then_a_person_decides(ago: float | None, ruling: Action) -> None:
    assert ruled(FAILING, last_seconds_ago=ago) is ruling


def test_it_can_be_switched_off_and_then_calls_a_person() -> None:
    seen = Observation(NOW, FAILING, a_serves=True, last_seconds_ago=None)
    assert decide(seen, Limits({"rollback_automatic": 0})).action is ALERT


@pytest.mark.parametrize(
    "setting", [replace(NOW, phase=Phase.DUAL_WRITE, hold=True), replace(NOW, phase=Phase.DEPRECATED)]
)
def test_where_traffic_is_held_or_cannot_go_back_nothing_is_done(setting: Setting) -> None:
    assert ruled(FAILING, setting=setting) is KEEP


@pytest.mark.parametrize(
    ("phase", "canary", "after"),
    [
        (Phase.CUTOVER, 0, Phase.DUAL_WRITE),
        (Phase.DUAL_READ, 0, Phase.DUAL_WRITE),
        (Phase.DUAL_WRITE, 500, Phase.DUAL_WRITE),
        (Phase.SHADOW, 0, Phase.SHADOW),
    ],
)
def test_everything_is_held_at_a_and_both_feeds_go_on(phase: Phase, canary: int, after: Phase) -> None:
    before = Setting(7, phase, canary, rehearsal=(1, 2), flags=(("x", True),))
    assert rolled_back(before) == Setting(8, after, 0, hold=True, flags=(("x", True),))


def test_from_the_last_phase_there_is_no_way_back() -> None:
    with pytest.raises(IllegalMove, match="no way back"):
        rolled_back(Setting(phase=Phase.DEPRECATED))

from __future__ import annotations

import grpc
import pytest

from baton_client import CallError
from baton_client.channel import OPTIONS, merged
from baton_client.retries import FIRST_SECONDS, LONGEST_SECONDS, Retries, Watching

AWAY = CallError(grpc.StatusCode.UNAVAILABLE, "away")


def test_pauses_double_up_to_the_longest() -> None:
    retries = Retries(None)
    pauses = [retries.pause(AWAY, 0.0, 0.0) for _ in range(40)]
    assert pauses[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert pauses[-1] == LONGEST_SECONDS


def test_no_attempt_is_earlier_than_the_server_asks_for() -> None:
    error = CallError(grpc.StatusCode.UNAVAILABLE, "away", retry_seconds=1.0)
    assert Retries(None).pause(error, 0.0, 0.0) == 1.0
    assert Retries(None).pause(error, 0.0, 1.0) == 1.5


def test_a_pause_that_the_deadline_would_end_is_the_end() -> None:
    with pytest.raises(CallError):
        Retries(ends=1.0).pause(AWAY, 0.99, 0.0)


def test_an_answer_gives_a_watch_its_patience_back() -> None:
    watching = Watching(None, patience_seconds=10.0, answered=0.0)
    for now in range(10):
        watching.pause(AWAY, float(now), 0.0)
    watching.note_answer(9.5)
    assert watching.pause(AWAY, 19.0, 0.0) == FIRST_SECONDS
    with pytest.raises(CallError):
        watching.pause(AWAY, 19.5, 0.0)


def test_a_caller_s_option_takes_the_place_of_ours() -> None:
    options = dict(merged((("grpc.keepalive_time_ms", 60_000), ("grpc.primary_user_agent", "x"))))
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert len(options) == len(OPTIONS) + 1

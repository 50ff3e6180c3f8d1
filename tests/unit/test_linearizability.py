"""The checker of recorded histories, against planted violations and correct histories."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from libs.proving.history.history import Call, HistoryError
from libs.proving.history.linearizability import Verdict, check, check_key
from libs.proving.history.operations import State, Status, live
from tests.unit.histories import OK, UNKNOWN, call, execution


def verdict(*calls: Call, initial: State | None = None) -> Verdict:
    return check_key(calls, initial or State()).verdict


def violation(*calls: Call, initial: State | None = None) -> str:
    result = check_key(calls, initial or State())
    assert result.verdict is Verdict.VIOLATED
    assert result.violation is not None
    assert result.violation.window[0] <= result.violation.window[1]
    return result.violation.reason


def test_a_life_of_a_record_in_order_is_linearizable() -> None:
    calls = [
        call("get", 0, 1, reason="SANDBOX_NOT_FOUND"),
        call("create", 2, 3, "a", 1),
        call("create", 4, 5, "x", reason="SANDBOX_ALREADY_EXISTS"),
        call("get", 4, 5, "a", 1),
        call("update", 6, 7, "b", 4),
        call("list", 7, 8, "b", 4),
        call("delete", 9, 10, None, 5),
        call("get", 11, 12),
        call("update", 11, 12, "y", reason="SANDBOX_NOT_FOUND"),
        call("undelete", 13, 14, None, 6),
        call("get", 15, 16, "b", 6),
        call("delete", 17, 18, None, 7),
        call("create", 19, 20, "c", 8),
        call("get", 21, 22, "c", 8),
    ]
    assert verdict(*calls) is Verdict.LINEARIZABLE


def test_concurrent_reads_may_see_a_write_before_or_after_it() -> None:
    write = call("update", 1, 9, "b")
    begin = live("a")
    assert verdict(write, call("get", 2, 3, "a"), call("get", 4, 5, "b"), initial=begin) is Verdict.LINEARIZABLE
    assert verdict(write, call("get", 2, 3, "b"), call("get", 4, 5, "a"), initial=begin) is Verdict.VIOLATED


def test_a_lost_write_is_found() -> None:
    assert "lost" in violation(call("create", 0, 1, "a", 1), call("get", 2, 3))
    assert "lost" in violation(call("get", 2, 3), initial=live("a"))
    overwritten = [call("create", 0, 1, "a"), call("update", 2, 3, "b"), call("get", 4, 5, "a")]
    assert "stale read" in violation(*overwritten)


def test_a_stale_strict_read_is_found_and_one_marked_stale_is_not_judged() -> None:
    writes = [call("create", 0, 1, "a", 1), call("update", 2, 3, "b", 2)]
    read = call("get", 4, 5, "a", 1)
    assert "stale read" in violation(*writes, read)
    assert verdict(*writes, replace(read, stale=True)) is Verdict.LINEARIZABLE


def test_a_retry_that_took_effect_again_is_found() -> None:
    first, retry = call("update", 0, None, "b", request="r"), call("update", 1, 2, "b", request="r")
    between, read = call("update", 3, 4, "c"), call("get", 5, 6, "b")
    assert "stale read" in violation(first, retry, between, read, initial=live("a"))
    answers = call("update", 0, 1, "b", 2, request="r"), call("update", 2, 3, "b", 3, request="r")
    assert "double effect" in violation(*answers, initial=live("a"))


def test_a_value_from_the_future_or_from_nowhere_is_found() -> None:
    assert "future" in violation(call("get", 0, 1, "b"), call("update", 2, 3, "b"), initial=live("a"))
    assert "future" in violation(call("get", 0, 1, "b"), call("update", 2, None, "b"), initial=live("a"))
    assert "no client wrote" in violation(call("get", 0, 1, "z"), initial=live("a"))


def test_a_deleted_record_that_comes_back_is_found() -> None:
    calls = [call("create", 0, 1, "a"), call("delete", 2, 3), call("get", 4, 5, "a")]
    assert "came back" in violation(*calls)
    assert verdict(*calls, call("undelete", 2, None)) is Verdict.LINEARIZABLE


def test_a_record_created_twice_is_found() -> None:
    assert "created twice" in violation(call("create", 0, 5, "a"), call("create", 1, 4, "b"))
    between = call("create", 0, 1, "a"), call("delete", 2, 3), call("create", 4, 5, "b")
    assert verdict(*between) is Verdict.LINEARIZABLE


def test_two_writers_of_one_revision_are_found() -> None:
    both = call("update", 0, 5, "b", 2), call("update", 1, 4, "c", 2)
    assert "two writers" in violation(*both, initial=live("a", (0, 1)))


def test_revisions_that_contradict_time_or_values_are_found() -> None:
    begin = live("a", (0, 1))
    assert "go back" in violation(call("update", 0, 1, "b", 5), call("update", 2, 3, "c", 4), initial=begin)
    seen_otherwise = [call("update", 0, 5, "b", 3), call("update", 0, 5, "c", 2), call("get", 6, 7, "c", 2)]
    assert verdict(*seen_otherwise, initial=begin) is Verdict.VIOLATED
    assert verdict(*(replace(each, revision=None) for each in seen_otherwise), initial=begin) is Verdict.LINEARIZABLE
    assert verdict(call("update", 0, 1, "b", 2), call("get", 2, 3, "b", 3), initial=begin) is Verdict.VIOLATED


def test_a_failed_precondition_is_an_observation() -> None:
    assert verdict(call("create", 0, 1, "a", reason="SANDBOX_ALREADY_EXISTS")) is Verdict.VIOLATED
    assert verdict(call("update", 0, 1, "b", reason="SANDBOX_NOT_FOUND"), initial=live("a")) is Verdict.VIOLATED
    assert verdict(call("undelete", 0, 1, reason="SANDBOX_NOT_FOUND")) is Verdict.LINEARIZABLE
    gone = State(Status.DELETED, "a")
    assert verdict(call("undelete", 0, 1, reason="SANDBOX_NOT_FOUND"), initial=gone) is Verdict.VIOLATED


def test_other_definite_failures_have_no_effect() -> None:
    failed = call("update", 0, 1, "b", reason="ETAG_MISMATCH")
    assert verdict(failed, call("get", 2, 3, "a"), initial=live("a")) is Verdict.LINEARIZABLE
    assert "no client wrote" in violation(failed, call("get", 2, 3, "b"), initial=live("a"))


@pytest.mark.parametrize("method", ["update", "delete"])
@pytest.mark.parametrize("happened", [True, False])
def test_a_write_of_unknown_outcome_may_have_happened_or_not(method: str, happened: bool) -> None:
    after = {("update", True): "b", ("delete", True): None}.get((method, happened), "a")
    write = call(method, 0, 1, "b" if method == "update" else None, outcome=UNKNOWN)
    assert verdict(write, call("get", 5, 6, after), initial=live("a")) is Verdict.LINEARIZABLE


def test_a_write_of_unknown_outcome_stays_open_but_happens_once() -> None:
    write = call("delete", 0, 1, outcome=UNKNOWN)
    seen = [call("get", 5, 6, "a"), call("get", 7, 8), call("get", 9, 10)]
    assert verdict(write, *seen, initial=live("a")) is Verdict.LINEARIZABLE
    assert verdict(write, *seen, call("create", 11, 12, "b"), initial=live("a")) is Verdict.LINEARIZABLE
    again = [call("create", 11, 12, "b"), call("get", 13, 14, "b"), call("get", 15, 16)]
    assert verdict(write, *seen, *again, initial=live("a")) is Verdict.VIOLATED
    assert verdict(write, *seen, *again, call("delete", 2, None), initial=live("a")) is Verdict.LINEARIZABLE


def test_a_refused_attempt_comes_before_the_effect_of_its_request() -> None:
    lost = call("create", 0, None, "b", request="r")
    refused = call("create", 2, 3, "b", request="r", reason="SANDBOX_ALREADY_EXISTS")
    begin = live("a")
    assert verdict(lost, refused, call("delete", 4, 5), call("get", 6, 7, "b"), initial=begin) is Verdict.LINEARIZABLE
    assert verdict(lost, refused) is Verdict.VIOLATED


def test_a_spent_budget_is_a_failure() -> None:
    calls = [call("create", 0, 100, "a"), *(call("update", 0, 100, f"v{n}") for n in range(12))]
    reads = [call("get", 101 + n, 102 + n, "v3") for n in range(3)]
    report = check([*calls, *reads], max_states=5)
    assert [result.verdict for result in report.keys] == [Verdict.EXHAUSTED]
    assert not report.ok
    assert "exhausted" in str(report.failures[0])
    assert check([*calls, *reads]).ok


def test_each_key_is_judged_on_its_own_and_named() -> None:
    good, bad = call("create", 0, 1, "a"), replace(call("get", 0, 1, "z"), key="sandboxes/two")
    report = check([good, bad, replace(call("list", 0, 1), key="")])
    assert [result.key for result in report.failures] == ["sandboxes/two"]
    assert "sandboxes/two" in str(report.failures[0])
    assert report.calls == 2


def test_the_explanation_shows_the_window_and_whom_to_blame() -> None:
    noise = [call("get", n, n + 0.5, "a") for n in range(50)]
    write, read = call("update", 100, 101, "b"), call("get", 102, 103, "a")
    later = [call("get", n, n + 0.5, "b") for n in range(200, 250)]
    result = check_key([*noise, write, read, *later], live("a"))
    assert result.violation is not None
    assert result.violation.window == (100, 103)
    assert result.violation.culprits == (write, read)
    assert len(result.violation.timeline) == 2
    assert all(line.startswith("> ") for line in result.violation.timeline)


@pytest.mark.parametrize(
    ("calls", "names"),
    [
        ([call("rename", 0, 1)], "method='rename'"),
        ([call("get", 2, 1, "a")], "end=1"),
        ([call("get", 2, None, "a", outcome=OK)], "must have an end"),
        ([call("update", 0, 1, "a", request="r"), call("update", 0, 1, "a", request="s")], "must be unique"),
        ([call("update", 0, 1, "a", request="r"), call("update", 0, 1, "b", request="r")], "request_id=r"),
    ],
)
def test_an_impossible_record_is_refused(calls: list[Call], names: str) -> None:
    with pytest.raises(HistoryError, match=names):
        check(calls)


def test_an_explanation_that_saw_more_is_never_dropped_for_one_that_saw_less() -> None:
    together = [call("update", 0, 20, "a"), call("update", 0, 20, "b"), call("update", 0, 2, "c")]
    reads = [call("get", 3, 19, "a"), call("get", 3, 6, "b"), call("get", 21, 22, "b")]
    for writes, seen in itertools.product(itertools.permutations(together), itertools.permutations(reads)):
        assert verdict(*writes, *seen, initial=live("o")) is Verdict.LINEARIZABLE


def test_of_two_open_deletes_the_one_that_was_refused_later_did_not_happen_before() -> None:
    refused_later, other = call("delete", 0, None, request="r"), call("delete", 1, None, request="s")
    gone, refused = call("get", 2, 3), call("delete", 4, 5, request="r", reason="SANDBOX_NOT_FOUND")
    assert verdict(refused_later, other, gone, refused, initial=live("a")) is Verdict.LINEARIZABLE
    assert verdict(refused_later, gone, refused, initial=live("a")) is Verdict.VIOLATED


def test_one_write_of_unknown_outcome_has_one_revision() -> None:
    write, first, second = call("update", 0, None, "b"), call("get", 6, 7, "b", 3), call("get", 8, 9, "b", 4)
    begin = live("a", (0, 1))
    assert verdict(write, first, second, initial=begin) is Verdict.VIOLATED
    assert verdict(write, first, replace(second, revision=(0, 3)), initial=begin) is Verdict.LINEARIZABLE


def test_thousands_of_calls_of_sixteen_clients_stay_far_below_the_budget() -> None:
    result = check_key(execution(7, 3000, 8, revisions=True), State())
    assert result.verdict is Verdict.LINEARIZABLE
    assert result.states < 100_000

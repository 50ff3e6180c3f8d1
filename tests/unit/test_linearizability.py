"""The checker of recorded histories, against planted violations, correct histories and a brute force."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from libs.verify.history import Call, HistoryError, Outcome, Version
from libs.verify.linearizability import KeyResult, Verdict, check, check_key
from libs.verify.operations import State, Status, live

KEY = "sandboxes/one"
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN
_numbers = itertools.count()


def call(
    method: str,
    start: float,
    end: float | None,
    value: str | None = None,
    revision: int | None = None,
    *,
    request: str | None = None,
    reason: str = "",
    outcome: Outcome | None = None,
    stale: bool = False,
) -> Call:
    number = next(_numbers)
    if outcome is None:
        outcome = FAILED if reason else UNKNOWN if end is None else OK
    version = None if revision is None else (0, revision)
    return Call(1, number, method, KEY, request, start, end, outcome, reason, value, version, stale)


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
    assert "nobody wrote" in violation(call("get", 0, 1, "z"), initial=live("a"))


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
    assert "nobody wrote" in violation(failed, call("get", 2, 3, "b"), initial=live("a"))


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


# Random histories


def execution(seed: int, length: int, concurrency: int, *, revisions: bool) -> list[Call]:
    """A sequential execution of random operations at the times 1, 2, 3…, each seen as an interval around its time."""
    chance = random.Random(seed)
    status, value, revision = Status.ABSENT, None, 0
    calls: list[Call] = []
    for at in range(1, length + 1):
        start, end = at - chance.uniform(0, concurrency), at + chance.uniform(0, concurrency)
        method = chance.choice(["get", "get", "get", "update", "update", "update", "create", "delete", "undelete"])
        version: Version | None = None
        wrote = f"v{at}" if method in {"create", "update"} else None
        reason = ""
        if method == "get":
            wrote = value if status is Status.LIVE else None
            version = (0, revision) if wrote else None
        elif status is Status.LIVE and method in {"create", "undelete"}:
            reason = "SANDBOX_ALREADY_EXISTS"
        elif (status is not Status.LIVE and method in {"update", "delete"}) or (
            status is Status.ABSENT and method == "undelete"
        ):
            reason = "SANDBOX_NOT_FOUND"
        lost = method != "get" and chance.random() < 0.1
        if not reason and method != "get" and (not lost or chance.random() < 0.5):
            status = Status.DELETED if method == "delete" else Status.LIVE
            value = wrote or value
            revision += chance.randint(1, 3)
            version = (0, revision)
        outcome = UNKNOWN if lost else FAILED if reason else OK
        version = version if revisions and outcome is OK else None
        calls.append(
            Call(at % 16, at, method, KEY, f"r{at}", start, end, outcome, "" if lost else reason, wrote, version)
        )
    return calls


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_execution_seen_with_random_overlap_is_linearizable(
    seed: int, length: int, concurrency: int, revisions: bool
) -> None:
    result = check_key(execution(seed, length, concurrency, revisions=revisions), State())
    assert result.verdict is Verdict.LINEARIZABLE, str(result)


@given(st.integers(0, 2**32), st.integers(0, 5), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_read_of_a_value_that_was_surely_overwritten_is_not(
    seed: int, concurrency: int, revisions: bool, data: st.DataObject
) -> None:
    calls = execution(seed, 50, concurrency, revisions=revisions)
    writes = [each for each in calls if each.method in {"create", "update"} and each.outcome is OK]
    choices = [
        (read, old)
        for read in calls
        if read.method == "get"
        for old in writes
        for new in writes
        if old.end is not None and new.end is not None and old.end < new.start and new.end < read.start
    ]
    assume(choices)
    read, old = data.draw(st.sampled_from(choices))
    calls[calls.index(read)] = replace(read, value=old.value, revision=old.revision)
    assert check_key(calls, State()).verdict is Verdict.VIOLATED


@st.composite
def small_histories(draw: st.DrawFn) -> list[Call]:
    calls = []
    requests = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    kinds = {request: draw(st.sampled_from(["create", "update", "delete", "undelete"])) for request in set(requests)}
    for request in requests:
        start = draw(st.integers(0, 8))
        end = start + draw(st.integers(0, 4))
        reading = draw(st.booleans())
        method = "get" if reading else kinds[request]
        outcome = OK if reading else draw(st.sampled_from([OK, OK, FAILED, UNKNOWN]))
        reason = draw(st.sampled_from(["NOT_FOUND", "ALREADY_EXISTS"])) if outcome is FAILED else ""
        value = f"v{request}" if method in {"create", "update"} else None
        value = draw(st.sampled_from(["v0", "v1", "v2", "v3", "first", None])) if reading else value
        revision = draw(st.sampled_from([None, 2, 3, 4])) if outcome is OK else None
        calls.append(call(method, start, end, value, revision, request=f"r{request}", reason=reason, outcome=outcome))
    return calls


def brute_force(calls: list[Call], initial: State, *, revisions: bool) -> bool:
    """Try every subset of the open calls in every order. Of the attempts of a request the first has the effect."""
    must = [each for each in calls if each.outcome is not UNKNOWN]
    may = [each for each in calls if each.outcome is UNKNOWN]
    return any(
        _in_time(order) and _explains(order, initial, revisions=revisions)
        for count in range(len(may) + 1)
        for chosen in itertools.combinations(may, count)
        for order in itertools.permutations([*must, *chosen])
    )


def _ends(each: Call) -> float:
    return math.inf if each.outcome is UNKNOWN or each.end is None else each.end


def _in_time(order: tuple[Call, ...]) -> bool:
    return not any(_ends(later) < earlier.start for earlier, later in itertools.combinations(order, 2))


def _explains(order: tuple[Call, ...], initial: State, *, revisions: bool) -> bool:
    status, value, at = initial.status, initial.value, 1 if revisions else None
    low, served = 1, set()
    for each in order:
        revision = each.revision[1] if each.revision and revisions else None
        if each.outcome is FAILED or each.method == "get":
            if each.outcome is FAILED and not _says_something(each):
                continue
            if each.method != "get" and each.request_id in served:
                return False
            if not _observed(each, status, value):
                return False
            if each.method == "get" and revision:
                if revision != (at or revision) or (at is None and revision <= low):
                    return False
                at = low = revision
            continue
        if each.request_id in served:
            continue
        needs = {"create": status is not Status.LIVE, "undelete": status is Status.DELETED}
        if not needs.get(each.method, status is Status.LIVE) or (revision and revision <= low):
            return False
        served.add(each.request_id)
        status = Status.DELETED if each.method == "delete" else Status.LIVE
        value = each.value or value
        at, low = revision, revision or low
    return True


def _observed(each: Call, status: Status, value: str | None) -> bool:
    if each.outcome is OK:
        return (status is Status.LIVE and value == each.value) if each.value else status is not Status.LIVE
    if each.reason == "ALREADY_EXISTS":
        return status is Status.LIVE
    return status is not (Status.DELETED if each.method == "undelete" else Status.LIVE)


def _says_something(each: Call) -> bool:
    """A refusal that speaks of the record. Others may come before or after the effect of another attempt."""
    return each.method in (
        {"create", "undelete"} if each.reason == "ALREADY_EXISTS" else {"update", "delete", "undelete"}
    )


def _double_effect(result: KeyResult) -> bool:
    return result.violation is not None and "double effect" in result.violation.reason


@given(small_histories(), st.booleans())
@settings(max_examples=600, deadline=None)
def test_the_checker_agrees_with_a_brute_force(calls: list[Call], there: bool) -> None:
    initial = live("first") if there else State()
    bare = [replace(each, revision=None) for each in calls]
    expected = brute_force(bare, initial, revisions=False)
    assert (check_key(bare, initial).verdict is Verdict.LINEARIZABLE) == expected


@given(small_histories(), st.booleans())
@settings(max_examples=600, deadline=None)
def test_revisions_only_rule_out_what_they_contradict(calls: list[Call], there: bool) -> None:
    initial = live("first", (0, 1)) if there else State(revision=(0, 1))
    result = check_key(calls, initial)
    if result.verdict is Verdict.LINEARIZABLE:
        assert brute_force(calls, initial, revisions=False)
    elif not _double_effect(result):
        known = {each.request_id: each.revision for each in calls if each.method != "get" and each.revision}
        told = [each if each.method == "get" else replace(each, revision=known.get(each.request_id)) for each in calls]
        assert not brute_force(told, initial, revisions=True)


def test_thousands_of_calls_of_sixteen_clients_stay_far_below_the_budget() -> None:
    result = check_key(execution(7, 3000, 8, revisions=True), State())
    assert result.verdict is Verdict.LINEARIZABLE
    assert result.states < 100_000

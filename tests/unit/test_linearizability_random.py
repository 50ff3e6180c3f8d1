"""The checker of recorded histories, against random executions and a brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from libs.proving.history.history import Call
from libs.proving.history.linearizability import KeyResult, Verdict, check_key
from libs.proving.history.operations import State, Status, live
from tests.unit.histories import FAILED, OK, UNKNOWN, call, execution


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


@pytest.mark.slow
@given(small_histories(), st.booleans())
@settings(max_examples=600, deadline=None)
def test_the_checker_agrees_with_a_brute_force(calls: list[Call], there: bool) -> None:
    initial = live("first") if there else State()
    bare = [replace(each, revision=None) for each in calls]
    expected = brute_force(bare, initial, revisions=False)
    assert (check_key(bare, initial).verdict is Verdict.LINEARIZABLE) == expected


@pytest.mark.slow
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

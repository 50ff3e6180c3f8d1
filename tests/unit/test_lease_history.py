"""Leases in a recorded history: each rule finds its violation, and passes a correct history."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from libs.proving.history.history import Call, Lease, Outcome
from libs.proving.history.leases import broken
from libs.proving.history.linearizability import Verdict, check
from tests.unit.histories import call

_requests = itertools.count()


def acquire(start: float, end: float | None, revision: int | None, holder: str, ttl: float = 10, **more: str) -> Call:
    token = f"0.{revision}" if revision else ""
    return _leased("acquire", start, end, revision, Lease(holder, ttl, token), **more)


def renew(start: float, end: float, revision: int | None, token: str, ttl: float = 10, **more: str) -> Call:
    return _leased("renew", start, end, revision, Lease("", ttl, token), **more)


def release(start: float, end: float | None, revision: int | None, token: str, **more: str) -> Call:
    return _leased("release", start, end, revision, Lease("", 0.0, token), **more)


def update(start: float, end: float, revision: int | None, token: str, **more: str) -> Call:
    return replace(_leased("update", start, end, revision, Lease(token=token), **more), value=f"v{revision}")


def _leased(method: str, start: float, end: float | None, revision: int | None, lease: Lease, reason: str = "") -> Call:
    made = call(method, start, end, None, revision, request=f"r{next(_requests)}", reason=reason)
    return replace(made, lease=lease)


FINE = {
    "one after the other": [
        acquire(1, 2, 2, "ann"),
        update(3, 4, 3, "0.2"),
        renew(5, 6, 4, "0.2"),
        release(7, 8, 5, "0.2"),
        acquire(7, 9, 6, "ben"),
    ],
    "its time was up": [
        acquire(1, 2, 2, "ann", 5),
        acquire(5, 6, 3, "ben"),
        renew(7, 8, None, "0.2", reason="LEASE_LOST"),
    ],
    "it lasted longer": [acquire(1, 2, 2, "ann", 5), acquire(50, 51, None, "ben", reason="LEASE_HELD")],
    "the same holder again": [acquire(1, 2, 2, "ann"), acquire(3, 4, 3, "ann")],
    "a release of unknown outcome": [acquire(1, 2, 2, "ann"), release(3, None, None, "0.2"), acquire(4, 5, 4, "ben")],
    "a shorter time": [acquire(1, 2, 2, "ann", 90), renew(3, 4, 3, "0.2", 2), acquire(5, 6, 4, "ben")],
}
BROKEN = {
    "not its revision": [replace(acquire(1, 2, 2, "ann"), lease=Lease("ann", 10, "0.1"))],
    "was done with token 0.2 after acquire": [
        acquire(1, 2, 2, "ann", 1),
        acquire(4, 5, 3, "ben"),
        update(6, 7, 4, "0.2"),
    ],
    "was done with token 0.2 after release": [
        acquire(1, 2, 2, "ann"),
        release(3, 4, 3, "0.2"),
        renew(5, 6, 4, "0.2"),
    ],
    "was granted while 'ann' held it": [acquire(1, 2, 2, "ann"), acquire(3, 4, 3, "ben")],
    "while 'ann' held it": [acquire(1, 2, 2, "ann", 2), renew(2, 3, 3, "0.2", 10), acquire(4, 11, 4, "ben")],
    "was lost before its TTL": [acquire(1, 2, 2, "ann"), renew(3, 4, None, "0.2", reason="LEASE_LOST")],
    "there was none": [
        acquire(1, 2, 2, "ann"),
        release(3, 4, 3, "0.2"),
        acquire(5, 6, None, "ben", reason="LEASE_HELD"),
    ],
}


@pytest.mark.parametrize("name", FINE)
def test_leases_that_were_kept_are_no_violation(name: str) -> None:
    assert broken(FINE[name]) is None
    assert check([call("create", 0, 0.5, "v1", 1), *FINE[name]]).ok


@pytest.mark.parametrize("what", BROKEN)
def test_a_lease_that_was_not_kept_is_a_violation_of_its_key(what: str) -> None:
    found = broken(BROKEN[what])
    assert found is not None and what in found[0]
    (result,) = check([call("create", 0, 0.5, "v1", 1), *BROKEN[what]]).keys
    assert result.verdict is Verdict.VIOLATED and what in str(result.violation)


def test_an_acquire_of_unknown_outcome_by_another_one_excuses_nothing() -> None:
    calls = [acquire(1, 2, 2, "ann"), acquire(3, None, None, "cid"), acquire(4, 5, 4, "ben")]
    assert calls[1].outcome is Outcome.UNKNOWN
    assert broken(calls) is not None


def test_a_lease_operation_of_unknown_outcome_may_explain_a_revision_that_is_read() -> None:
    made = call("create", 0, 1, "v1", 1)
    read = call("get", 4, 5, "v1", 2)
    assert not check([made, read]).ok
    assert check([made, acquire(2, None, None, "ann"), read]).ok


def test_a_lease_is_had_on_a_live_record_only() -> None:
    gone = [call("create", 0, 1, "v1", 1), call("delete", 2, 3, None, 2)]
    assert not check([*gone, acquire(4, 5, 3, "ann")]).ok
    assert not check([*gone, renew(4, 5, None, "0.1", reason="LEASE_LOST")]).ok

"""Limits of each caller: shares, rates, bytes, and how many callers a listener remembers."""

from __future__ import annotations

from collections import Counter

import pytest
from google.rpc import error_details_pb2

from libs.clock import ManualClock
from libs.identity.principal import ANONYMOUS, Principal
from libs.rpc.callers import (
    MOST_REMEMBERED,
    CallerLimitReached,
    CallerLimits,
    Callers,
    TooFast,
    TooManyBytes,
    TooManyCalls,
    TooManyStreams,
    host_of,
)
from libs.rpc.errors import status_of

PEER = "ipv4:10.0.0.1:4711"


def callers(limits: CallerLimits, calls: int = 8, streams: int = 4, clock: ManualClock | None = None) -> Callers:
    return Callers(limits, calls, streams, clock or ManualClock(), Counter())


def named(subject: str) -> Principal:
    return Principal(f"test:{subject}")


def refused(action: object, *arguments: object) -> CallerLimitReached:
    with pytest.raises(CallerLimitReached) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value


def test_a_caller_sends_its_burst_at_once_and_then_at_its_rate() -> None:
    clock = ManualClock()
    at = callers(CallerLimits(rate=10, burst=3), clock=clock)
    ann, ben = at.of(named("ann"), PEER), at.of(named("ben"), PEER)
    for _ in range(3):
        at.admit_call(ann)
    first = refused(at.admit_call, ann)
    assert isinstance(first, TooFast) and first.retry_seconds == pytest.approx(0.1, abs=0.002)
    at.admit_call(ben)
    clock.advance(0.05)
    assert refused(at.admit_call, ann).retry_seconds == pytest.approx(0.05, abs=0.002)
    clock.advance(0.051)
    at.admit_call(ann)
    refused(at.admit_stream, ann)
    clock.advance(1000)
    for _ in range(3):
        at.admit_stream(ann)
    refused(at.admit_call, ann)


@pytest.mark.parametrize("rate", [0.1, 3, 7, 1000 / 7])
def test_a_caller_that_waits_as_long_as_it_is_told_is_served(rate: float) -> None:
    clock = ManualClock()
    at = callers(CallerLimits(rate=rate, burst=2), clock=clock)
    ann = at.of(named("ann"), PEER)
    for _ in range(2):
        at.admit_call(ann)
    for _ in range(50):
        delay = refused(at.admit_call, ann).retry_seconds
        assert delay is not None
        (retry,) = (one for one in status_of(TooFast(rate, delay)).details if one.type_url.endswith("RetryInfo"))
        told = error_details_pb2.RetryInfo.FromString(retry.value).retry_delay.ToTimedelta().total_seconds()
        assert told <= 1 / rate + 0.002
        clock.advance(told)
        at.admit_call(ann)


def test_a_refused_call_costs_no_token() -> None:
    clock = ManualClock()
    at = callers(CallerLimits(rate=1, burst=1), clock=clock)
    ann = at.of(named("ann"), PEER)
    at.admit_call(ann)
    for _ in range(100):
        refused(at.admit_call, ann)
    clock.advance(1.001)
    at.admit_call(ann)


def test_a_caller_has_its_share_or_its_own_limit_whichever_is_lower() -> None:
    for limits, calls, streams in (
        (CallerLimits(share=0.5), 4, 2),
        (CallerLimits(share=0.5, calls=3, streams=1), 3, 1),
        (CallerLimits(share=0.5, calls=100, streams=100), 4, 2),
        (CallerLimits(calls=3, streams=1), 3, 1),
    ):
        at = callers(limits)
        ann = at.of(named("ann"), PEER)
        for _ in range(calls):
            at.admit_call(ann)
            ann.calls += 1
        assert isinstance(refused(at.admit_call, ann), TooManyCalls)
        for _ in range(streams):
            at.admit_stream(ann)
            ann.streams += 1
        assert isinstance(refused(at.admit_stream, ann), TooManyStreams)
        ann.waiting = 1
        at.admit_call(ann)


def test_without_limits_a_caller_may_use_the_whole_listener() -> None:
    at = callers(CallerLimits())
    ann = at.of(named("ann"), PEER)
    ann.calls = ann.streams = 10_000
    at.admit_call(ann)
    at.admit_stream(ann)
    at.hold(ann, 1 << 40)


def test_the_bytes_of_a_callers_requests_are_limited_together() -> None:
    counts: Counter[str] = Counter()
    at = Callers(CallerLimits(request_bytes=100), 8, 4, ManualClock(), counts)
    ann, ben = at.of(named("ann"), PEER), at.of(named("ben"), PEER)
    at.hold(ann, 60)
    at.hold(ben, 100)
    assert isinstance(refused(at.hold, ann, 41), TooManyBytes)
    at.hold(ann, 40)
    ann.request_bytes -= 60
    at.hold(ann, 60)
    assert counts == {"LIMIT_REQUEST_BYTES": 1}


def test_an_error_names_the_limit_and_its_value() -> None:
    error = TooManyCalls("caller_calls", 4.0, "4 calls in progress")
    assert error.metadata == {"limit": "caller_calls", "most": "4"}
    assert error.message == "this caller has 4 calls in progress: its limit caller_calls is 4"


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "ipv4:10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4711", "ipv6:2001:db8::"),
        ("ipv6:[2001:db8::ffff:1]:4711", "ipv6:2001:db8::"),
        ("ipv6:[2001:db8:0:1::1]:4711", "ipv6:2001:db8:0:1::"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "ipv6:fe80::"),
        ("ipv6:[::ffff:10.0.0.1]:4711", "ipv4:10.0.0.1"),
        ("ipv6:nonsense:4711", "ipv6:nonsense"),
        ("unknown:0", "unknown:"),
    ],
)
def test_connections_of_one_host_are_of_one_caller(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_anonymous_callers_are_their_hosts_and_others_are_their_subjects() -> None:
    at = callers(CallerLimits())
    other = "ipv4:10.0.0.2:4711"
    assert at.of(ANONYMOUS, PEER) is at.of(ANONYMOUS, "ipv4:10.0.0.1:4712")
    assert at.of(ANONYMOUS, PEER) is not at.of(ANONYMOUS, other)
    assert at.of(named("ann"), PEER) is at.of(named("ann"), other)
    assert at.of(named("ann"), PEER) is not at.of(named("ben"), PEER)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_the_number_of_remembered_callers_is_limited_and_those_with_calls_stay(rate: float) -> None:
    at = callers(CallerLimits(rate=rate, burst=2))
    busy = [at.of(named(f"busy-{number}"), PEER) for number in range(10)]
    for one, field in zip(busy, ("calls", "streams", "reading") * 4, strict=False):
        setattr(one, field, 1)
    for number in range(3 * MOST_REMEMBERED):
        at.admit_call(at.of(named(str(number)), PEER))
        assert len(at) <= MOST_REMEMBERED + len(busy)
    assert [at.of(named(f"busy-{number}"), PEER) for number in range(10)] == busy


def test_a_caller_that_owes_tokens_is_remembered_longer_than_one_that_does_not() -> None:
    at = callers(CallerLimits(rate=0.001, burst=1))
    fast = at.of(named("fast"), PEER)
    for number in range(MOST_REMEMBERED // 2):
        at.of(named(f"quiet-{number}"), PEER)
    fast = at.of(named("fast too"), PEER)
    at.admit_call(fast)
    for number in range(MOST_REMEMBERED):
        at.of(named(f"more-{number}"), PEER)
    assert at.of(named("fast too"), PEER) is fast
    refused(at.admit_call, fast)

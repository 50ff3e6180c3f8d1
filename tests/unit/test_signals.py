"""Measurements of calls and jobs, without processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from libs.clock import ManualClock
from libs.rpc.gate import Gate, ServerLimits
from libs.rpc.signals import ServedCalls, status_of_end
from libs.store.limits import OutboxLimits
from libs.store.outbox import Depth
from libs.telemetry.durations import Durations
from libs.telemetry.table import TABLE
from services.router.core.jobs import Job, JobState
from services.router.features.signals import JobGauges

CALLS = TABLE["rpc.server.call.duration"]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_histogram_counts_each_duration_once_and_shows_the_last_trace_of_each_bucket() -> None:
    durations = Durations(CALLS)
    cell = durations.cell("s/Get", "public", "OK")
    assert durations.cell("s/Get", "public", "OK") is cell, "a cell is found once and kept"
    cell.add(0.001)
    cell.add(0.002, TRACE)
    cell.add(99.0)
    registry = CollectorRegistry()
    registry.register(durations)
    text = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    buckets = [line for line in text.splitlines() if "_bucket" in line]
    assert [line.split("} ")[1].split(" ")[0] for line in buckets] == ["1.0", *["2.0"] * 12, "3.0"]
    assert [f'{{trace_id="{TRACE}"}} 0.002' in line for line in buckets] == [False, True, *[False] * 12]
    assert "rpc_server_call_duration_seconds_sum" in text and "} 99.003" in text


def test_a_process_without_metrics_puts_nothing_around_its_calls() -> None:
    bare = Gate(ServerLimits(), None)
    assert bare.answer == bare._answer and bare.stream == bare._stream
    calls = ServedCalls(Durations(CALLS), "public", {})
    measured = Gate(ServerLimits(), None, calls=calls)
    assert measured.answer != measured._answer and measured.stream != measured._stream


class Ended:
    """A context of a call that has ended."""

    def __init__(self, code: int, remaining: float | None = None) -> None:
        self._code = code
        self._remaining = remaining

    def code(self) -> int:
        return self._code

    def time_remaining(self) -> float | None:
        return self._remaining


@pytest.mark.parametrize(
    ("context", "error", "status"),
    [
        (Ended(5), grpc.aio.AbortError(), "NOT_FOUND"),
        (Ended(0), grpc.aio.UsageError(), "UNKNOWN"),
        (Ended(0), asyncio.CancelledError(), "CANCELLED"),
        (Ended(0, 1.5), asyncio.CancelledError(), "CANCELLED"),
        (Ended(0, 0.0), asyncio.CancelledError(), "DEADLINE_EXCEEDED"),
    ],
)
def test_a_call_that_fails_is_counted_under_the_status_that_its_caller_gets(
    context: Ended, error: BaseException, status: str
) -> None:
    assert status_of_end(context, error) == status


def test_a_job_is_idle_from_its_last_advance_on() -> None:
    clock = ManualClock()
    job = Job("backfill", "backfill to B", "anna", id="backfill-1", state=JobState.RUNNING, done=5, total=20)
    jobs = [job]
    gauges = JobGauges(clock, lambda: jobs)
    assert [one.value for one in gauges.progress()] == [0.25]
    assert [one.labels["state"] for one in gauges.states() if one.value] == ["RUNNING"]
    assert [one.value for one in gauges.idle()] == [0.0]
    clock.advance(30)
    assert [one.value for one in gauges.idle()] == [30.0]
    jobs[0] = replace(job, done=6)
    assert [one.value for one in gauges.idle()] == [0.0]
    clock.advance(30)
    jobs[0] = replace(job, done=6, state=JobState.PAUSED)
    assert [one.value for one in gauges.idle()] == [0.0], "a paused job waits for an operator"
    jobs.insert(0, replace(job, id="backfill-2", state=JobState.QUEUED, done=0, total=0))
    assert [one.labels["state"] for one in gauges.states() if one.value] == ["QUEUED"], "the newest of its lane"
    assert list(gauges.progress()) == [], "unknown without a total"


def test_the_fullest_limit_of_an_outbox_counts() -> None:
    limits = OutboxLimits(entries=100, bytes=1000, seconds=10.0)
    assert limits.share(Depth(0, 0, 0.0)) == 0
    assert limits.share(Depth(50, 100, 1.0)) == 0.5
    assert limits.share(Depth(50, 900, 1.0)) == 0.9
    assert limits.share(Depth(50, 900, 12.0)) == 1.2

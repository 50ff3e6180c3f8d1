"""Measurements, spans and log lines of calls, without processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from libs.clock import ManualClock
from libs.eventlog.cloudevents import traceparent_of
from libs.rpc.caller import read_caller
from libs.rpc.errors import trace_of
from libs.rpc.gate import Gate, ServerLimits
from libs.rpc.signals import Pairs, Signals, status_of_end
from libs.store.limits import OutboxLimits
from libs.store.outbox import Depth
from libs.telemetry import trace_context
from libs.telemetry.durations import Durations
from libs.telemetry.logs import JsonLines, TextLines
from libs.telemetry.table import TABLE
from libs.telemetry.tracing import ending, exporting
from services.router.core.jobs import Job, JobState
from services.router.features.signals import JobGauges

CALLS = TABLE["rpc.server.call.duration"]
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CALLER}-01"


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
    assert Signals().served_by("public", {}, private=False) is None and Signals().sent_to("A") is None
    calls = Signals(logged_share=1.0).served_by("public", {}, private=False)
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


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-x-y-01",
        f"00-{TRACE}-00f067aa0ba902b7-1",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-00f067aa0ba902b7-01\n",
    ],
)
def test_a_trace_context_that_is_not_valid_is_ignored(value: str) -> None:
    assert trace_context.checked(value) == ""
    assert traceparent_of([("ce_id", b"1"), ("traceparent", value.encode())]) == ""
    assert read_caller([("traceparent", value)], internal=True).traceparent == ""


def test_a_valid_trace_context_is_kept_as_it_is() -> None:
    for value in (GIVEN, GIVEN[:-2] + "00", "cc" + GIVEN[2:]):
        assert trace_context.checked(value) == value
        assert traceparent_of([("Traceparent", value.encode())]) == value
        assert read_caller([("traceparent", value)], internal=False).traceparent == value
    assert trace_context.trace_id_of(GIVEN) == TRACE


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def parents(self) -> dict[str, str]:
        """The parent's id of each span, by the span's name."""
        return {one.name: "" if one.parent is None else f"{one.parent.span_id:016x}" for one in self.spans}


class Called(Ended):
    def __init__(self, *pairs: tuple[str, str]) -> None:
        super().__init__(0)
        self._pairs = pairs

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._pairs


async def test_a_call_is_a_span_of_its_callers_trace_and_the_parent_of_the_calls_it_makes() -> None:
    kept = Kept()
    async with exporting(kept, 1.0, Resource({})) as spans:
        signals = Signals(spans=spans)
        sent = signals.sent_to("A")
        public = signals.served_by("public", {"Get": "s/Get"}, private=False)
        private = signals.served_by("internal", {"Poll": "s/Poll"}, private=True)
        assert sent is not None and public is not None and private is not None
        seen: list[str] = []

        async def store(pairs: Pairs) -> str:
            seen.extend(str(value) for name, value in pairs if name == "traceparent")
            return "row"

        async def answer(handler: object, name: str, requests: object, context: object) -> str:
            seen.append(trace_context.current.get())
            return await sent.sent("/s/Ask", [("traceparent", "another"), ("x", "y")], store)

        assert await public.around(answer)(None, "Get", None, Called(("traceparent", GIVEN))) == "row"
        served, asked = seen
        assert served[3:35] == asked[3:35] == TRACE and trace_context.current.get() == ""
        await private.around(answer)(None, "Poll", None, Called())
        assert seen[2:] == ["", "another"], "no trace begins at a listener for processes"
        with pytest.raises(NotFound):
            await public.around(fail)(None, "Get", None, Called(("traceparent", GIVEN[:-2] + "00")))
    assert kept.parents() == {"s/Get": CALLER, "s/Ask": served[36:52]}


class NotFound(grpc.aio.AbortError):
    code = grpc.StatusCode.NOT_FOUND


async def fail(handler: object, name: str, requests: object, context: object) -> str:
    raise NotFound


async def test_changes_are_spans_only_if_the_trace_of_their_write_is_recorded() -> None:
    kept = Kept()
    async with exporting(kept, 1.0, Resource({})) as spans:
        for value in (GIVEN[:-2] + "00", "", "00-x-y-01"):
            assert spans.producer("send", value, {}) is None and spans.consumer("process", value, {}) is None
        sent = spans.producer("send", GIVEN, {})
        assert sent is not None
        with pytest.raises(ValueError, match="refused"), ending([None, sent, spans.consumer("process", GIVEN, {})]):
            raise ValueError("refused")
    assert kept.parents() == {"send": CALLER, "process": CALLER}
    assert [one.status.description for one in kept.spans] == ["ValueError"] * 2


@pytest.mark.parametrize("lines", [TextLines(), JsonLines()])
def test_a_log_line_of_a_traced_call_names_the_trace(lines: logging.Formatter) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "hello", None, None)
    assert TRACE not in lines.format(record)
    token = trace_context.current.set(GIVEN)
    try:
        assert TRACE in lines.format(record)
    finally:
        trace_context.current.reset(token)


def test_an_error_names_the_trace_that_its_caller_gave() -> None:
    context: Any = Called(("traceparent", GIVEN))
    assert trace_of(context) == (("baton-trace-id", TRACE),)
    assert trace_of(cast("Any", Called(("traceparent", "00-x-y-01")))) == trace_of(cast("Any", Called())) == ()


async def test_a_share_of_the_calls_gets_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(*call: object) -> str:
        return "row"

    for share in (0.5, 1.0):
        caplog.clear()
        calls = Signals(logged_share=share).served_by("public", {"Get": "s/Get"}, private=False)
        assert calls is not None
        with caplog.at_level(logging.INFO, logger="call"):
            for _ in range(200):
                await calls.around(answer)(None, "Get", None, Called())
        lines = [line for line in caplog.messages if line.startswith("s/Get at public: OK in ")]
        assert len(lines) == 200 if share == 1.0 else 40 < len(lines) < 160, "of 200, off by 8 standard deviations"

"""Spans of a process, exported by OTLP if a setting names a receiver.

Spans are made where a call enters and leaves a process, where a change goes to the log, and where it is applied. The
sampling is parent based: a caller that records its trace decides for every process behind it; else the process that
sees a call first decides. A process without a receiver has no `Spans`, and its calls pass no line of this module.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from libs.telemetry import trace_context
from libs.telemetry.otlp import SEND_SECONDS, Receiver, end_bounded, quiet_exporters

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as RealSpan
    from opentelemetry.trace import SpanKind, Tracer

log = logging.getLogger(__name__)

OK = "OK"

Attributes = Mapping[str, str | int]


class Span:
    """A span that has begun. `end` it once."""

    __slots__ = ("_span", "recorded_id", "traceparent")

    def __init__(self, span: RealSpan) -> None:
        found = span.get_span_context()
        trace_id = f"{found.trace_id:032x}"
        sampled = bool(found.trace_flags.sampled)
        self.traceparent = f"00-{trace_id}-{found.span_id:016x}-{sampled:02x}"
        """The traceparent for all work on behalf of the call."""
        self.recorded_id = trace_id if sampled else ""
        """Trace id if the trace is recorded, else ""."""
        self._span = span

    def end(self, status: str = OK) -> None:
        """`status`: name of the status; any but OK is an error."""
        from opentelemetry.trace import Status, StatusCode

        if status != OK:
            self._span.set_status(Status(StatusCode.ERROR, status))
            self._span.set_attribute("error.type", status)
        self._span.end()


class Spans:
    """Makes spans."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind

        self._tracer = tracer
        self._kinds: Mapping[str, SpanKind] = {kind.name: kind for kind in SpanKind}

    def server(self, name: str, traceparent: str, attributes: Attributes) -> Span:
        """A call that this process serves. `traceparent`: of the caller; "" begins a trace."""
        return self._begin(name, "SERVER", traceparent, attributes)

    def client(self, name: str, attributes: Attributes) -> Span:
        """A call that this process makes on behalf of the running one."""
        return self._begin(name, "CLIENT", trace_context.current.get(), attributes)

    def producer(self, name: str, traceparent: str, attributes: Attributes) -> Span | None:
        """A change that goes to the log; None if its trace is not recorded."""
        return self._follow(name, "PRODUCER", traceparent, attributes)

    def consumer(self, name: str, traceparent: str, attributes: Attributes) -> Span | None:
        """A change that is applied; None if its trace is not recorded."""
        return self._follow(name, "CONSUMER", traceparent, attributes)

    def _follow(self, name: str, kind: str, traceparent: str, attributes: Attributes) -> Span | None:
        parent = trace_context.parse(traceparent)
        recorded = parent is not None and parent.sampled
        return self._begin(name, kind, traceparent, attributes) if recorded else None

    def _begin(self, name: str, kind: str, traceparent: str, attributes: Attributes) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        parent = trace_context.parse(traceparent)
        context = Context()
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(remote), context)
        return Span(self._tracer.start_span(name, context, self._kinds[kind], attributes))


@contextmanager
def ending(spans: Sequence[Span | None]) -> Iterator[None]:
    """End the spans with the block, and with its error if it fails."""
    status = OK
    try:
        yield
    except BaseException as error:
        status = getattr(error, "reason", type(error).__name__)
        raise
    finally:
        for span in spans:
            if span is not None:
                span.end(status)


@asynccontextmanager
async def open_tracing(receiver: Receiver | None, share: float) -> AsyncIterator[Spans | None]:
    """`receiver`: None disables traces. `share`: of the traces that begin here, those that are recorded."""
    if receiver is None:
        yield None
        return
    # Only a process that exports traces loads this module.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    quiet_exporters()
    exporter = OTLPSpanExporter(
        receiver.endpoint, insecure=receiver.insecure, credentials=receiver.credentials(), timeout=SEND_SECONDS
    )
    async with exporting(exporter, share, receiver.resource()) as spans:
        log.info("traces go to %s, %g %% of those that begin here", receiver.endpoint, 100 * share)
        yield spans


@asynccontextmanager
async def exporting(exporter: SpanExporter, share: float, resource: Resource) -> AsyncIterator[Spans]:
    """Send spans to an exporter, in the background. At the end the last ones are sent, within a bound."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(ParentBased(TraceIdRatioBased(share)), resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    try:
        yield Spans(provider.get_tracer("baton"))
    finally:
        await end_bounded(provider.shutdown, "spans")

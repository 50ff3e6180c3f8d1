"""Spans of a process, exported by OTLP if a setting names a receiver.

Spans are made where a call enters and leaves a process, where a change goes to the log, and where it is applied. The
sampling is parent based: a caller that records its trace decides for every process behind it; else the process that
sees a call first decides. A process without a receiver has no `Spans`, and its calls pass no line of this module.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from libs.telemetry import trace_context

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as RealSpan
    from opentelemetry.trace import SpanKind, Tracer

log = logging.getLogger(__name__)

_EXPORT_SECONDS = 5.0
"""Maximum time to send a batch; then its spans are dropped."""
_END_SECONDS = 3.0
"""Maximum time to send the last spans at the end of a process."""

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
        """For all that is done on its behalf."""
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
async def open_tracing(
    endpoint: str, share: float, program: str, instance: str, ca: Path | None = None
) -> AsyncIterator[Spans | None]:
    """`endpoint`: an OTLP receiver over gRPC, http://host:port or https://host:port; "" disables traces. `share`: of
    the traces that begin here, those that are recorded. `ca`: of an https receiver; None: the system's."""
    if not endpoint:
        yield None
        return
    # Only a process that exports traces loads these modules.
    from grpc import ssl_channel_credentials
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    insecure = endpoint.startswith("http://")
    credentials = None if insecure else ssl_channel_credentials(_read(ca))
    exporter = OTLPSpanExporter(endpoint, insecure=insecure, credentials=credentials, timeout=_EXPORT_SECONDS)
    # While the receiver is unavailable, the exporter logs each retry.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    async with exporting(exporter, share, program, instance) as spans:
        log.info("traces go to %s, %g %% of those that begin here", endpoint, 100 * share)
        yield spans


def _read(file: Path | None) -> bytes | None:
    return None if file is None else file.read_bytes()


@asynccontextmanager
async def exporting(exporter: SpanExporter, share: float, program: str, instance: str) -> AsyncIterator[Spans]:
    """Send spans to an exporter, in the background. At the end the last ones are sent, within a bound."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource({"service.name": program, "service.namespace": "baton", "service.instance.id": instance})
    provider = TracerProvider(ParentBased(TraceIdRatioBased(share)), resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    try:
        yield Spans(provider.get_tracer("baton"))
    finally:
        await _end(provider.shutdown)


async def _end(shutdown: Callable[[], None]) -> None:
    """Run `shutdown`, which blocks while the receiver is unavailable, for a bounded time. Its thread does not keep the
    process alive."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        shutdown()
        # The loop may have closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="last spans", daemon=True).start()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await ended.wait()
    except TimeoutError:
        log.warning("the last spans could not be sent within %g s", _END_SECONDS)

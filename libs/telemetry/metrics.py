"""Metrics of one process: OpenTelemetry instruments, served to Prometheus over HTTP if a setting names an address, and
sent to an OTLP receiver if settings say so.

They are collected in the process's event loop, within a few milliseconds, so instruments need no locks. A reader that
accepts OpenMetrics gets the traces of calls as exemplars.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import TYPE_CHECKING

from opentelemetry.metrics import Meter, NoOpMeter

from libs.errors import BatonError
from libs.telemetry.durations import Durations
from libs.telemetry.otlp import Receiver
from libs.telemetry.otlp_metrics import Sender, open_exporter, sending
from libs.telemetry.process_metrics import loop_delay, measure_process
from libs.telemetry.table import TABLE

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

log = logging.getLogger(__name__)

_NAME = "baton"
_DURATIONS = ("rpc.server.call.duration", "rpc.client.call.duration", "baton.event_loop.delay")
_ANSWER_SECONDS = 5.0
_REQUEST_BYTES = 8192
_READERS = 8
"""Maximum number of concurrent readers; more are rejected."""


class CannotExport(BatonError):
    """The listener for metrics could not be opened."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of a process."""

    meter: Meter
    """Makes instruments (`libs.telemetry.instruments`)."""
    served: Durations | None = None
    """Calls that listeners have served; None: not measured."""
    sent: Durations | None = None
    """Calls to other processes; None: not measured."""


NO_METRICS = Metrics(NoOpMeter(_NAME))


@asynccontextmanager
async def open_metrics(
    address: str,
    tls: SSLContext | None = None,
    program: str = _NAME,
    receiver: Receiver | None = None,
    receiver_seconds: float = 0.0,
) -> AsyncIterator[Metrics]:
    """`address`: host:port of `GET /metrics`; "" disables it. `tls`: for HTTPS. `receiver`: metrics are sent to it each
    `receiver_seconds`; 0 disables it. Without either nothing is measured.

    Raises CannotExport.
    """
    sends = receiver is not None and receiver_seconds > 0
    if not (address or sends):
        yield NO_METRICS
        return
    # Only a process that exports metrics loads these modules.
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    served, sent, delay = durations = [Durations(TABLE[name]) for name in _DURATIONS]
    async with AsyncExitStack() as stack:
        readers: list[MetricReader] = []
        if address:
            readers.append(await stack.enter_async_context(_served_page(address, tls, durations)))
        sent_reader = InMemoryMetricReader()
        if sends:
            readers.append(sent_reader)
        provider = MeterProvider(readers, None if receiver is None else receiver.resource(), shutdown_on_exit=False)
        stack.callback(provider.shutdown)
        meter = provider.get_meter(_NAME)
        measure_process(meter, program)
        if receiver is not None and sends:
            sender = Sender(sent_reader, durations, open_exporter(receiver))
            await stack.enter_async_context(sending(sender, receiver_seconds))
            log.info("metrics go to %s each %g s", receiver.endpoint, receiver_seconds)
        with loop_delay(delay.cell()):
            yield Metrics(meter, served, sent)


@asynccontextmanager
async def _served_page(
    address: str, tls: SSLContext | None, durations: Sequence[Durations]
) -> AsyncIterator[MetricReader]:
    """`GET /metrics`, with the instruments of the yielded reader and the durations. Raises CannotExport."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    for one in durations:
        registry.register(one)

    def render(accept: str) -> tuple[str, bytes]:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    pages = _Pages(render)
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(pages.answer, host.strip("[]"), int(port), limit=_REQUEST_BYTES, ssl=tls)
    except OSError as error:
        raise CannotExport(f"metrics: cannot listen on {address}: {error.strerror or error}") from error
    bound = server.sockets[0].getsockname()[1]
    log.info("metrics at %s://%s:%s/metrics", "http" if tls is None else "https", host, bound)
    try:
        yield reader
    finally:
        server.close()
        await pages.close()
        await server.wait_closed()


class _Pages:
    """Answers one request per connection."""

    def __init__(self, render: Callable[[str], tuple[str, bytes]]) -> None:
        """`render`: content type and body, for the reader's header Accept."""
        self._render = render
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._tasks) >= _READERS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._page(head))
                await writer.drain()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            log.info("a reader of metrics left or sent no request: %r", error)
        finally:
            self._tasks.discard(task)
            writer.close()

    def _page(self, head: bytes) -> bytes:
        request, *headers = head.split(b"\r\n")
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if (method, path) != (b"GET", b"/metrics"):
            return _response("404 Not Found", "text/plain; charset=utf-8", b"GET /metrics\n")
        named = (line.partition(b":") for line in headers)
        accept = next((value for name, _, value in named if name.lower() == b"accept"), b"")
        return _response("200 OK", *self._render(accept.decode("latin-1").strip()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

"""Metrics of one process: OpenTelemetry instruments, served to Prometheus over HTTP if a setting names an address.

They are collected in the process's event loop, within a few milliseconds, so instruments need no locks. Names become
Prometheus's: "baton.lock.held" is `baton_lock_held`, a counter ends in `_total`, seconds in `_seconds`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

from opentelemetry.metrics import Meter, NoOpMeter

from libs.errors import BatonError

log = logging.getLogger(__name__)

_NAME = "baton"
_ANSWER_SECONDS = 5.0
_REQUEST_BYTES = 8192
_READERS = 8
"""Maximum number of concurrent readers; more are rejected."""


class CannotExport(BatonError):
    """The listener for metrics could not be opened."""


@asynccontextmanager
async def open_metrics(address: str, tls: SSLContext | None = None) -> AsyncIterator[Meter]:
    """The meter that makes instruments. `address`: host:port of `GET /metrics`; "" disables metrics. `tls`: for HTTPS.

    Raises CannotExport.
    """
    if not address:
        yield NoOpMeter(_NAME)
        return
    # Only a process that exports metrics loads these modules.
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    pages = _Pages(lambda: generate_latest(registry))
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(pages.answer, host.strip("[]"), int(port), limit=_REQUEST_BYTES, ssl=tls)
    except OSError as error:
        raise CannotExport(f"metrics: cannot listen on {address}: {error.strerror or error}") from error
    try:
        bound = server.sockets[0].getsockname()[1]
        log.info("metrics at %s://%s:%s/metrics", "http" if tls is None else "https", host, bound)
        yield provider.get_meter(_NAME)
    finally:
        server.close()
        await pages.close()
        await server.wait_closed()
        provider.shutdown()


class _Pages:
    """Answers one request per connection."""

    def __init__(self, render: Callable[[], bytes]) -> None:
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
                writer.write(self._page(head.partition(b"\r\n")[0]))
                await writer.drain()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            log.info("a reader of metrics left or sent no request: %r", error)
        finally:
            self._tasks.discard(task)
            writer.close()

    def _page(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if (method, path) != (b"GET", b"/metrics"):
            return _response("404 Not Found", b"GET /metrics\n")
        return _response("200 OK", self._render())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

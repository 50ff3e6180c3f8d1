"""Receivers of traces and metrics by OTLP over gRPC."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc import ChannelCredentials
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger(__name__)

SEND_SECONDS = 5.0
"""Maximum time to send a batch; then it is dropped."""
_END_SECONDS = 3.0
"""Maximum time to send the last batch at the end of a process."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver, and the process that sends to it."""

    endpoint: str
    """http://host:port or https://host:port."""
    program: str
    """Name of the program, such as "baton_router"."""
    instance: str
    """Name of the process among those of the program."""
    ca: Path | None = None
    """CA of an https receiver; None: those of the system."""

    @property
    def insecure(self) -> bool:
        return self.endpoint.startswith("http://")

    def credentials(self) -> ChannelCredentials | None:
        """For https; None for http."""
        from grpc import ssl_channel_credentials

        if self.insecure:
            return None
        return ssl_channel_credentials(None if self.ca is None else self.ca.read_bytes())

    def resource(self) -> Resource:
        """The sender of all spans and metrics, by OpenTelemetry's semantic conventions."""
        from opentelemetry.sdk.resources import Resource

        return Resource(
            {"service.name": self.program, "service.namespace": "baton", "service.instance.id": self.instance}
        )


def quiet_exporters() -> None:
    """While the receiver is unavailable, an exporter logs each retry."""
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)


async def end_bounded(shutdown: Callable[[], None], signal: str) -> None:
    """Run `shutdown`, which blocks while the receiver is unavailable, for a bounded time. Its thread does not keep the
    process alive. `signal`: "spans" or "metrics"."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        shutdown()
        # The loop may have closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name=f"last {signal}", daemon=True).start()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await ended.wait()
    except TimeoutError:
        log.warning("the last %s could not be sent within %g s", signal, _END_SECONDS)

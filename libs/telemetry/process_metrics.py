"""Metrics of the process itself: build, resources, and the delay of its event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.metrics import Meter

from libs.telemetry.durations import Cell
from libs.telemetry.instruments import Reading, observe, observe_one
from libs.telemetry.vitals import UNKNOWN, vitals

_LOOK_SECONDS = 0.1


def measure_process(meter: Meter, program: str) -> None:
    """`program`: its name, such as "baton_router"."""
    observe(meter, "baton.build.info", lambda: [Reading(1, {"program": program, "version": _version()})])
    observe_one(meter, "process.cpu.time", time.process_time)
    observe_one(meter, "process.memory.usage", lambda: _known(vitals().resident_bytes))
    observe_one(meter, "process.open_file_descriptor.count", lambda: _known(vitals().descriptors))
    observe_one(meter, "process.uptime", lambda: vitals().uptime_seconds)
    observe_one(meter, "baton.event_loop.tasks", lambda: vitals().tasks)


@contextmanager
def loop_delay(cell: Cell) -> Iterator[None]:
    """Measure by how much the event loop runs a timer too late: the time that each call may have to wait."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def begin() -> None:
        nonlocal timer
        due = loop.time() + _LOOK_SECONDS
        timer = loop.call_at(due, end, due)

    def end(due: float) -> None:
        cell.add(max(loop.time() - due, 0.0))
        begin()

    begin()
    try:
        yield
    finally:
        timer.cancel()


def _known(value: int) -> int | None:
    return None if value == UNKNOWN else value


def _version() -> str:
    try:
        return version("baton")
    except PackageNotFoundError:
        return "unknown"

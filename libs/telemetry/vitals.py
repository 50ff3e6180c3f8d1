"""Resources that this process uses. They must return to their idle level when the work is over; otherwise it leaks."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from libs.pb.baton.telemetry.v1 import telemetry_pb2 as pb

_SELF = Path("/proc/self")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STARTED = time.monotonic()
_START_ID = uuid.uuid4().hex

UNKNOWN = -1
"""Number of descriptors or bytes if the system does not report them."""

Gauge = Callable[[], int]


def nothing() -> int:
    """Gauge of a resource that a process does not have."""
    return 0


@dataclass(frozen=True, slots=True)
class Gauges:
    """Gauges that other parts of the process provide."""

    connections: Gauge = nothing
    """Database connections in use."""
    locks: Gauge = nothing
    """Locks that the process holds."""


def vitals(gauges: Gauges | None = None) -> pb.Vitals:
    """Vitals of this process now. Call it in the event loop."""
    gauges = gauges or Gauges()
    return pb.Vitals(
        pid=os.getpid(),
        uptime_seconds=time.monotonic() - _STARTED,
        tasks=len(asyncio.all_tasks()),
        descriptors=_descriptors(),
        resident_bytes=_resident_bytes(),
        connections=gauges.connections(),
        locks=gauges.locks(),
        start_id=_START_ID,
    )


def _descriptors() -> int:
    try:
        # The listing itself has one descriptor open.
        return len(os.listdir(_SELF / "fd")) - 1
    except OSError:
        return UNKNOWN


def _resident_bytes() -> int:
    try:
        return int((_SELF / "statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return UNKNOWN

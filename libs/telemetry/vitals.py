"""What a process uses, told by itself: what must come back to where it was when the work is over, else it leaks."""

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
"""Of descriptors and memory where the system does not tell."""

Gauge = Callable[[], int]


def nothing() -> int:
    """For a process that has none of it."""
    return 0


@dataclass(frozen=True, slots=True)
class Gauges:
    """What only the process's own parts know."""

    connections: Gauge = nothing
    """Database connections that are with somebody now."""
    locks: Gauge = nothing
    """Locks that it holds."""


def vitals(gauges: Gauges | None = None) -> pb.Vitals:
    """Of this process, now. Asked for within its event loop."""
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
        # The listing itself has one open.
        return len(os.listdir(_SELF / "fd")) - 1
    except OSError:
        return UNKNOWN


def _resident_bytes() -> int:
    try:
        return int((_SELF / "statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return UNKNOWN

"""How long writes at B wait for their turn. Each process of B tells of its own; whichever is asked answers."""

from __future__ import annotations

from collections import Counter

from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.telemetry.latency import Histogram, summed

FRESH_SECONDS = 30.0
"""A process that was not heard of for so long is not counted any more: it has gone, or nobody can tell."""


class TurnWaits:
    def __init__(self) -> None:
        self._told: dict[str, tuple[float, Histogram]] = {}
        """By process: when, and what."""

    def note(self, locks: pb.Locks, now: float) -> None:
        self._told[locks.process] = now, Counter(dict(locks.waits))

    def counts(self, now: float) -> Histogram | None:
        """Over all processes; None: none has told."""
        self._told = {process: told for process, told in self._told.items() if now - told[0] <= FRESH_SECONDS}
        return summed(waits for _, waits in self._told.values()) if self._told else None

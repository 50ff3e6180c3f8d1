"""Resources of a system's processes before and after an action: the difference is a leak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc

from libs.pb.baton.telemetry.v1 import telemetry_pb2

POLL_SECONDS = 0.2

KINDS = ("locks", "tasks", "connections", "descriptors", "resident_bytes")
"""Kinds of leaks."""

Ask = Callable[[], Awaitable[telemetry_pb2.Vitals]]
"""Asks one process. Raises grpc.aio.AioRpcError."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Growth that is not a leak: channels and pools open resources at first use."""

    tasks: int = 12
    descriptors: int = 24
    resident_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Vitals:
    """Resources of one process at one time, or the minimum of several times."""

    pid: int
    tasks: int
    descriptors: int
    resident_bytes: int
    connections: int
    locks: int

    def least(self, other: Vitals) -> Vitals:
        """The smaller value of each figure; after a restart, the later process's values."""
        if other.pid != self.pid:
            return other
        return Vitals(
            self.pid,
            min(self.tasks, other.tasks),
            min(self.descriptors, other.descriptors),
            min(self.resident_bytes, other.resident_bytes),
            min(self.connections, other.connections),
            min(self.locks, other.locks),
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """One process before and after."""

    name: str
    before: Vitals
    after: Vitals
    tolerance: Tolerance

    @property
    def restarted(self) -> bool:
        """The process was restarted, so there is nothing to compare."""
        return self.before.pid != self.after.pid

    @property
    def leaks(self) -> Mapping[str, int]:
        """Excess by kind; all zero if nothing leaks."""
        if self.restarted:
            return dict.fromkeys(KINDS, 0)
        before, after, may = self.before, self.after, self.tolerance
        return {
            "tasks": _beyond(after.tasks - before.tasks, may.tasks),
            "descriptors": _beyond(after.descriptors - before.descriptors, may.descriptors),
            "connections": after.connections,
            "locks": after.locks,
            "resident_bytes": _beyond(after.resident_bytes - before.resident_bytes, may.resident_bytes),
        }

    @property
    def ok(self) -> bool:
        return not any(self.leaks.values())

    def as_dict(self) -> dict[str, Any]:
        """Values before and after, and the excess, by kind."""
        return {
            "name": self.name,
            "restarted": self.restarted,
            "ok": self.ok,
            **{
                kind: {"before": getattr(self.before, kind), "after": getattr(self.after, kind), "leaked": leaked}
                for kind, leaked in self.leaks.items()
            },
        }


def _beyond(growth: int, allowed: int) -> int:
    return growth if growth > allowed else 0


async def look(processes: Mapping[str, Ask]) -> dict[str, Vitals]:
    """The current vitals of each process that answers."""
    found = await asyncio.gather(*(ask() for ask in processes.values()), return_exceptions=True)
    seen = {}
    for name, answer in zip(processes, found, strict=True):
        if isinstance(answer, telemetry_pb2.Vitals):
            seen[name] = Vitals(
                answer.pid,
                answer.tasks,
                answer.descriptors,
                answer.resident_bytes,
                answer.connections,
                answer.locks,
            )
        elif not isinstance(answer, grpc.aio.AioRpcError):
            raise answer
    return seen


async def growth(
    processes: Mapping[str, Ask], before: Mapping[str, Vitals], tolerance: Tolerance, settle_seconds: float
) -> list[Growth]:
    """Check until no process exceeds its tolerance, or the time is up. A resource that is busy at one check is not a
    leak: only the minimum over all checks counts. A process that does not answer keeps its earlier figures and counts
    as restarted (process 0)."""
    least: dict[str, Vitals] = {}
    deadline = time.monotonic() + settle_seconds
    while True:
        for name, seen in (await look(processes)).items():
            least[name] = least[name].least(seen) if name in least else seen
        found = [
            Growth(name, vitals, least.get(name, replace(vitals, pid=0)), tolerance) for name, vitals in before.items()
        ]
        if all(one.ok and name_known(one, least) for one in found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(POLL_SECONDS)


def name_known(one: Growth, seen: Mapping[str, Vitals]) -> bool:
    """Whether the process has answered since."""
    return one.name in seen

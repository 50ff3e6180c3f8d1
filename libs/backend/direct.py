# ruff: noqa: N802 - the method is named as in the .proto.
"""Direct calls: those of clients that follow the router's routes and call the store that owns the record.

A direct call carries the metadata `baton-bucket`. The record's row decides whether this store answers it, as for every
call. Routers report about once a second which calls are direct; a call outside their routes comes from a client that
follows old ones, or that lost its router, and goes on to a router. So a rollback, a flag or the logged phase holds for
such a client too. If no router has reported for KEPT_SECONDS, the owner answers.

A process counts its direct calls since its start. Routers read the counts and add the differences to their own
measurements, so that gates and automatic rollback see direct calls. A router may read as often as it likes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from opentelemetry.metrics import Meter

from libs.clock import Clock
from libs.contract.descriptors import Method
from libs.errors import BatonError, InvalidField, is_server_fault
from libs.ownership.errors import NotOwner
from libs.ownership.model import BUCKETS
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc import metadata
from libs.rpc.errors import Context
from libs.telemetry.instruments import Reading, observe
from libs.telemetry.latency import Histogram, bucket_of_seconds
from libs.telemetry.lateness import Lateness

T = TypeVar("T")

KEPT_SECONDS = 10.0
"""The report of a router counts for this long."""

FORMER_SECONDS = 60.0
"""A client that follows routes that ended so long ago, at most twice as long, is no client of the old service."""

MOST_ROUTERS = 64
MOST_METHODS = 256
MOST_RUNS = BUCKETS // 2
MOST_NAME_BYTES = 256

_AT_ITS_END_SECONDS = 0.05
"""A call that is cancelled with less time left has reached its deadline."""

Masks = Mapping[str, int]
"""A bit for each bucket, by the path of a method."""


def is_marked(found: Any) -> bool:
    """Whether a call is a direct one, by its metadata."""
    return any(name == metadata.BUCKET for name, _ in found or ())


@dataclass(frozen=True, slots=True)
class _Report:
    """The last report of a router."""

    at: float
    generation: int
    masks: Masks
    logged: bool


class Routes:
    """The direct routes to this store, by the reports of all routers. Those of the newest generation count, together:
    routers follow a change one after another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock.monotonic()
        self._reports: dict[str, _Report] = {}
        self._masks: Masks | None = None
        """None: no router has reported routes recently."""
        self._heard = False
        """A router has reported, with routes or without any."""
        self._valid_until = 0.0
        self._former: Masks = {}
        self._earlier: Masks = {}
        """The routes of the last FORMER_SECONDS, and of those before."""
        self._former_since = self._began_at
        self.logged = False
        """Direct writes are acknowledged from the event log. The last report counts until another one comes."""

    def __repr__(self) -> str:
        return f"<Routes routers={sorted(self._reports)}>"

    def learn(self, router: str, routes: pb.DirectRoutes | None) -> None:
        """Take a router's report; None: it gives no routes. Raises InvalidField."""
        _check_name("router", router)
        now, self._heard = self._clock.monotonic(), True
        if routes is None:
            self._reports.pop(router, None)
        elif router in self._reports or len(self._reports) < MOST_ROUTERS:
            self._reports[router] = _Report(now, routes.generation, _masks(routes), routes.logged)
        self._renew(now)

    def known(self) -> bool:
        """Whether a router has reported routes recently."""
        self._refresh()
        return self._masks is not None

    def has(self, path: str, bucket: int) -> bool:
        """Whether the owner answers a direct call: it is in the routes, or no router has reported any for
        KEPT_SECONDS, since the start too."""
        self._refresh()
        if self._masks is None:
            return self._heard or self._clock.monotonic() - self._began_at > KEPT_SECONDS
        return _is_in(self._masks, path, bucket)

    def led_here(self, path: str, bucket: int) -> bool:
        """Whether a client that follows the routes may send this call, now or with routes that ended recently."""
        now = self._clock.monotonic()
        if not self._former and not self._earlier and not self.known():
            # Just started: the routers have not reported yet.
            return now - self._began_at <= KEPT_SECONDS
        return any(_is_in(masks, path, bucket) for masks in (self._former, self._earlier))

    def _refresh(self) -> None:
        if (now := self._clock.monotonic()) >= self._valid_until and self._reports:
            self._renew(now)

    def _renew(self, now: float) -> None:
        self._reports = {name: report for name, report in self._reports.items() if now - report.at <= KEPT_SECONDS}
        if not self._reports:
            self._masks = None
            return
        newest = max(report.generation for report in self._reports.values())
        current = [report for report in self._reports.values() if report.generation == newest]
        self._masks = _joined(report.masks for report in current)
        self.logged = any(report.logged for report in current)
        self._valid_until = min(report.at for report in self._reports.values()) + KEPT_SECONDS
        if now - self._former_since > FORMER_SECONDS:
            self._earlier, self._former, self._former_since = self._former, {}, now
        self._former = _joined((self._former, self._masks))


@dataclass(slots=True)
class _Cell:
    calls: int = 0
    faults: int = 0
    latencies: Histogram = field(default_factory=Counter)


class DirectCalls:
    """The direct calls of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock.monotonic()
        self._lateness = Lateness()
        self._cells: dict[tuple[str, bool], _Cell] = {}
        self._reports = 0
        self.routes = Routes(clock)
        self.passed_on = 0
        """Direct calls that went on to a router."""

    def __repr__(self) -> str:
        return f"<DirectCalls {self.calls} passed_on={self.passed_on}>"

    @property
    def calls(self) -> int:
        """Direct calls that this process has answered as owner, or failed to."""
        return sum(cell.calls for cell in self._cells.values())

    @property
    def faults(self) -> int:
        return sum(cell.faults for cell in self._cells.values())

    async def measured(self, method: Method, context: Context, answering: Awaitable[T]) -> T:
        """Await `answering` and count the call, by the rules of a router's own measurements: a refusal with a reason is
        an answer, a caller that left leaves no count, and a deadline that was too short is not the store's fault."""
        began = self._clock.monotonic()
        try:
            answer = await answering
        except NotOwner:
            self._lateness.answered(self._clock.monotonic())
            raise
        except BatonError as error:
            self._count(method, began, fault=is_server_fault(error.code, error.reason))
            raise
        except asyncio.CancelledError:
            if _has_passed(context) and self._lateness.is_late(began, self._clock.monotonic()):
                self._count(method, began, fault=True)
            raise
        except Exception:
            # A defect: the caller gets INTERNAL.
            self._count(method, began, fault=True)
            raise
        self._count(method, began, fault=False)
        return answer

    def _count(self, method: Method, began: float, *, fault: bool) -> None:
        now = self._clock.monotonic()
        cell = self._cells.setdefault((method.operation, method.is_read), _Cell())
        cell.calls += 1
        if fault:
            cell.faults += 1
            return
        self._lateness.answered(now)
        cell.latencies[bucket_of_seconds(now - began)] += 1

    def report(self, process: str) -> pb.SyncDirectCallsResponse:
        calls = [
            pb.DirectCalls(
                operation=operation, is_read=is_read, calls=cell.calls, faults=cell.faults, latencies=cell.latencies
            )
            for (operation, is_read), cell in self._cells.items()
        ]
        self._reports += 1
        return pb.SyncDirectCallsResponse(
            process=process,
            uptime_seconds=self._clock.monotonic() - self._began_at,
            calls=calls,
            passed_on=self.passed_on,
            number=self._reports,
        )


class DirectMethods:
    """A method of the replication API."""

    _direct: DirectCalls
    _process: str
    """Id of the process."""

    async def SyncDirectCalls(self, request: pb.SyncDirectCallsRequest, context: Context) -> pb.SyncDirectCallsResponse:
        """Answers from memory: a store whose database is unavailable must still report its faults."""
        self._direct.routes.learn(request.router, request.routes if request.HasField("routes") else None)
        return self._direct.report(self._process)


def measure_direct(meter: Meter, direct: DirectCalls) -> None:
    """Export the numbers of direct calls since the start."""

    def read() -> Iterable[Reading]:
        return [
            Reading(direct.calls - direct.faults, {"outcome": "answered"}),
            Reading(direct.faults, {"outcome": "failed"}),
            Reading(direct.passed_on, {"outcome": "passed_on"}),
        ]

    observe(meter, "baton.direct.calls", read)


def _has_passed(context: Context) -> bool:
    """Whether a cancelled call has reached its deadline, its own or the listener's."""
    remaining: float | None = context.time_remaining()
    return not context.cancelled() or (remaining is not None and remaining <= _AT_ITS_END_SECONDS)


def _is_in(masks: Masks, path: str, bucket: int) -> bool:
    return bool(masks.get(path, 0) >> bucket & 1)


def _joined(parts: Iterable[Masks]) -> Masks:
    found: dict[str, int] = {}
    for part in parts:
        for path, mask in part.items():
            found[path] = found.get(path, 0) | mask
    return found


def _masks(routes: pb.DirectRoutes) -> Masks:
    """Raises InvalidField."""
    _check_number("routes.methods", routes.methods, MOST_METHODS)
    found: dict[str, int] = {}
    for method in routes.methods:
        _check_number("routes.methods.paths", method.paths, MOST_METHODS)
        _check_number("routes.methods.runs", method.runs, MOST_RUNS)
        mask = 0
        for run in method.runs:
            if not 0 <= run.first < run.end <= BUCKETS:
                raise InvalidField("routes.methods.runs", f"{run.first} to {run.end}", f"0 to {BUCKETS}, rising")
            mask |= (1 << run.end) - (1 << run.first)
        for path in method.paths:
            _check_name("routes.methods.paths", path)
            found[path] = found.get(path, 0) | mask
        _check_number("routes.methods.paths", found, MOST_METHODS)
    return found


def _check_number(name: str, found: Sequence[Any] | Mapping[str, Any], most: int) -> None:
    if len(found) > most:
        raise InvalidField(name, f"{len(found)} entries", f"at most {most}")


def _check_name(name: str, value: str) -> None:
    if not 0 < len(value.encode(errors="replace")) <= MOST_NAME_BYTES:
        raise InvalidField(name, value, f"1 to {MOST_NAME_BYTES} bytes")

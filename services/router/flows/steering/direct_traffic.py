"""Direct calls of clients that follow the routes: the stores count them, and this router reads the counts.

About once a second the router gives each process of a store the direct routes, and at once if they change. The process
answers with its counts since its start. The router adds the difference from the process's previous answer to its
measurements. So a router that is started again counts no call again, and a process that is started again loses at most
the calls of its last second.

Every router reads the counts of every process. Their measurements of direct calls are therefore not summed:
`Measurement` takes those of the router that has seen the most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import grpc

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.store.concurrency import Notifier
from libs.tasks import Loop
from libs.telemetry.latency import Histogram
from services.router.core.measure import Counts, Meter
from services.router.core.routes import Routes, Run
from services.router.flows.stores import Refused, StoreClient, Stores

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 0.1
"""Shortest time between two reports of routes."""
KNOWN_SECONDS = 10.0
"""A process that has not answered for this long is not waited for."""
KEPT_SECONDS = 60.0
"""An answer is remembered for this long. A younger process that is not known has never been seen."""
MOST_PROCESSES = 64

_Key = tuple[str, bool]
"""Operation, and whether it is a read."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The last answer of a process."""

    at: float
    number: int
    calls: Mapping[_Key, tuple[Counts, Histogram]]
    passed_on: int


class DirectTraffic:
    def __init__(
        self,
        stores: Stores,
        meter: Meter,
        clock: Clock,
        router: str,
        routes: Callable[[], Routes | None],
        logged: Callable[[], bool],
        changes: Notifier,
    ) -> None:
        """`meter`: for direct calls only. `routes`: those that clients get now; None if this router gives them none.
        `logged`: writes are acknowledged from the log now. `changes`: notified when routes change."""
        self._stores = stores
        self._meter = meter
        self._clock = clock
        self._router = router
        self._routes = routes
        self._logged = logged
        self._changes = changes
        self._began_at = clock.monotonic()
        self._answers: dict[Store, dict[str, _Answer]] = {store: {} for store in Store}
        self.take_reporting: Callable[[frozenset[Store]], None] = lambda _: None
        """Called after each exchange with the stores that report their direct calls."""
        self.passed_on: Counter[Store] = Counter()
        """Direct calls that the processes have passed on to routers, since this router's first look at each."""
        self.loops = [Loop(f"direct calls {store}", partial(self._run, store)) for store in stores]

    async def sync(self, store: Store) -> None:
        """Exchange with each process of the store that is reachable.

        The channel calls the processes in turn, but client calls on it take turns too. So the processes that were left
        out are looked for once more.
        """
        client, known, request = self._stores[store], self._processes(store), self._request(store)
        missing = known - await self._ask(client, request, min(max(len(known), 1), MOST_PROCESSES))
        if missing:
            await self._ask(client, request, min(len(known) + 1, MOST_PROCESSES))
        self.take_reporting(frozenset(one for one in Store if self._processes(one)))

    def _processes(self, store: Store) -> set[str]:
        """Processes that have answered recently."""
        now = self._clock.monotonic()
        return {process for process, answer in self._answers[store].items() if now - answer.at <= KNOWN_SECONDS}

    async def _ask(self, client: StoreClient, request: pb.SyncDirectCallsRequest, times: int) -> set[str]:
        """Ask so many times at once. Returns the processes that answered."""
        asking = (client.ask(client.replication.SyncDirectCalls, request, ANSWER_SECONDS) for _ in range(times))
        answers = await asyncio.gather(*asking, return_exceptions=True)
        found = set()
        for answer in answers:
            if isinstance(answer, pb.SyncDirectCallsResponse):
                self._take(client.store, answer)
                found.add(answer.process)
            elif not isinstance(answer, BatonError):
                raise answer
            elif not _is_of_an_earlier_release(answer):
                log.debug("store %s: direct calls: %s", client.store, answer)
        return found

    def _request(self, store: Store) -> pb.SyncDirectCallsRequest:
        request, found = pb.SyncDirectCallsRequest(router=self._router), self._routes()
        if found is None:
            return request
        request.routes.generation, request.routes.logged = found.generation, self._logged()
        by_runs = sorted((tuple(runs), path) for path, runs in found.direct_at(store).items())
        for runs, entries in groupby(by_runs, key=lambda entry: entry[0]):
            request.routes.methods.append(_methods(runs, [path for _, path in entries]))
        return request

    def _take(self, store: Store, answer: pb.SyncDirectCallsResponse) -> None:
        now, known = self._clock.monotonic(), self._answers[store]
        before = known.get(answer.process)
        if before is not None and answer.number <= before.number:
            # Another answer of the process has overtaken this one.
            return
        calls = {
            (one.operation, one.is_read): (Counts(one.calls, one.faults), Counter(dict(one.latencies)))
            for one in answer.calls
        }
        if before is None:
            # If the process is seen for the first time since its start, all its calls are new; otherwise none is.
            is_new = answer.uptime_seconds < min(now - self._began_at, KEPT_SECONDS)
            before = _Answer(now, 0, {} if is_new else calls, 0 if is_new else answer.passed_on)
        for (operation, is_read), (counts, latencies) in calls.items():
            counted, seen = before.calls.get((operation, is_read), (Counts(), Counter()))
            more = Counts(counts.calls - counted.calls, counts.faults - counted.faults)
            if more.calls > 0:
                self._meter.add_reported(store, operation, is_read, more, latencies - seen, now)
        self.passed_on[store] += answer.passed_on - before.passed_on
        known[answer.process] = _Answer(now, answer.number, calls, answer.passed_on)
        self._answers[store] = {name: one for name, one in known.items() if now - one.at <= KEPT_SECONDS}

    async def _run(self, store: Store, loop: Loop) -> None:
        count = self._changes.count
        await self.sync(store)
        loop.well()
        await asyncio.sleep(PAUSE_SECONDS)
        await self._changes.after(count, INTERVAL_SECONDS - PAUSE_SECONDS)


def _methods(runs: tuple[Run, ...], paths: list[str]) -> pb.MethodRoutes:
    return pb.MethodRoutes(paths=paths, runs=[pb.BucketRun(first=run.first, end=run.end) for run in runs])


def _is_of_an_earlier_release(error: BatonError) -> bool:
    return isinstance(error, Refused) and error.error.code() is grpc.StatusCode.UNIMPLEMENTED

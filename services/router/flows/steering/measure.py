"""The sum of all routers' measurements: each second a router writes its own to the control store and reads all.

Only the reader's clock decides whether a report is recent. A report counts from the time at which this router first saw
it, provided that it had seen an earlier one of the same router. So a stopped router fades out, and an old report of a
stopped router does not count as live.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

from libs.clock import Clock
from libs.errors import BatonError
from libs.ownership.model import Store
from libs.tasks import Loop
from libs.telemetry.latency import MEDIAN, P99, Histogram, quantile
from services.router.control.codec import SETTING_FIELDS
from services.router.control.port import Report, Reports
from services.router.core.evidence import Evidence
from services.router.core.measure import SECONDS, Counts, Meter, ShadowCounts, merged, total
from services.router.core.throttle import Load
from services.router.core.write_ledger import LedgerCounts
from services.router.flows.steering.report import MOST_CLIENTS, DirectCalls, Identity, Measured, OldClient
from services.router.flows.traffic import Answered, Totals

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0

FRESH_SECONDS = 5.0
"""A router that has not reported for this long no longer counts as live; its past seconds stay."""

LOAD_SECONDS = 10
"""The period over which the current latency of live traffic is measured."""

NOTHING = ShadowCounts()


class RoutersNotReady(BatonError):
    """A live router is of an earlier release, which does not support this rule: upgrade or stop it first."""

    code = "FAILED_PRECONDITION"
    reason = "ROUTERS_NOT_READY"


@dataclass(slots=True)
class _Other:
    """The last report of another router."""

    number: int
    seen_at: float
    measured: Measured | None = None
    """None until its report has changed once: before that, its age is not known."""


@dataclass(frozen=True, slots=True)
class Sources:
    """A router's counts besides its calls to the stores."""

    shadow: Callable[[], tuple[int, ShadowCounts]] = lambda: (0, NOTHING)
    """The run of shadow reads, and its counts."""
    noise: Callable[[], ShadowCounts] = ShadowCounts
    """The counts of a run that compares a store with itself."""
    answered: Callable[[], Answered] = Answered
    """The counts for jobs."""
    ledger: Callable[[], LedgerCounts] = LedgerCounts
    totals: Callable[[], Totals] = Totals
    generation: Callable[[], int] = int
    clients: Callable[[], Sequence[OldClient]] = tuple
    identity: Callable[[], Identity | None] = lambda: None


class Side(NamedTuple):
    """The measured calls of one store."""

    calls_per_second: float
    p99_seconds: float | None
    """None if no call was answered."""
    direct_calls_per_second: float = 0.0
    """Rate of the calls that clients sent to the store directly; they are included in the calls."""
    p50_seconds: float | None = None
    operations: tuple[tuple[str, float], ...] = ()
    """Calls per second by operation, highest first."""


class Measurement:
    def __init__(
        self,
        reports: Reports,
        meter: Meter,
        router: str,
        clock: Clock,
        sources: Sources = Sources(),
        direct: Meter | None = None,
    ) -> None:
        """`meter`: of this router's calls to the stores. `direct`: of the direct calls that the stores report."""
        self._reports = reports
        self._meter = meter
        self._router = router
        self._clock = clock
        self._sources = sources
        self._direct_meter = direct or Meter()
        self._number = secrets.randbits(48)
        self._others: dict[str, _Other] = {}
        self._exchanged_at: float | None = None
        self._unreadable: set[str] = set()
        self.loop = Loop("measurement", self._body, first_pause_seconds=0.2, longest_pause_seconds=1.0)

    def __repr__(self) -> str:
        return f"<Measurement {self._router} others={sorted(self._others)}>"

    @property
    def fresh(self) -> bool:
        """Whether reports were exchanged recently, so that the sums cover all routers."""
        return self._exchanged_at is not None and self._clock.monotonic() - self._exchanged_at <= FRESH_SECONDS

    def mine(self) -> Measured:
        now = self._clock.monotonic()
        run, counts = self._sources.shadow()
        return Measured(
            self._meter.seconds(now),
            {store: self._meter.recent(store, now) for store in Store},
            self._meter.parities(now),
            run,
            counts,
            self._sources.answered(),
            self._sources.ledger(),
            self._meter.latency(now, LOAD_SECONDS),
            {store: self._meter.latencies(store, now, LOAD_SECONDS) for store in Store},
            self._sources.totals(),
            self._sources.generation(),
            tuple(self._sources.clients())[:MOST_CLIENTS],
            self._sources.identity(),
            SETTING_FIELDS,
            self._my_direct(now) or None,
            {store: self._meter.operations(store, now, LOAD_SECONDS) for store in Store},
            self._meter.periods(now),
            self._sources.noise(),
        )

    async def exchange(self) -> None:
        """Write this router's report and read the others'. Raises ControlUnavailable."""
        self._number += 1
        await self._reports.report(Report(self._router, self._number, self.mine().to_json()))
        reports = await self._reports.reports()
        now = self._clock.monotonic()
        self._take([report for report in reports if report.router != self._router], now)
        self._exchanged_at = now

    def seconds(self) -> tuple[tuple[Counts, Counts], ...]:
        """Return A's and B's counts over all routers in each past second, newest first."""
        now = self._clock.monotonic()
        sums: list[tuple[list[Counts], list[Counts]]] = []

        def add(measured: Measured | DirectCalls, age: int) -> None:
            for second, (a, b) in enumerate(measured.seconds[: SECONDS - age], age):
                while len(sums) <= second:
                    sums.append(([], []))
                sums[second][0].append(a)
                sums[second][1].append(b)

        add(self.mine(), 0)
        for other in self._others.values():
            if other.measured is not None and now - other.seen_at < SECONDS:
                add(other.measured, round(now - other.seen_at))
        if (direct := self._direct()) is not None:
            add(direct[1], round(direct[2]))
        return tuple((total(a), total(b)) for a, b in sums)

    def recent(self, store: Store) -> Counts:
        """Return calls and faults of the last minutes."""
        return total(measured.recent[store] for measured in self._everything())

    def answered(self) -> dict[str, Answered]:
        """Return the counts for jobs by live router."""
        others = {name: measured.answered for name, measured in self._fresh_others()}
        return {self._router: self._sources.answered(), **others}

    def direct_answered_by_b(self) -> tuple[str, int] | None:
        """Return the direct calls that B has answered, and the router that has read them; None without direct calls."""
        direct = self._direct()
        return None if direct is None else (direct[0], direct[1].answered_by_b)

    def load(self, lag_seconds: float | None, fenced: Collection[Store] = ()) -> Load:
        """Return the load of live traffic: the latency of the slowest router, and the faults of all routers.

        The caller supplies the lag. A fenced store fails every call, and no slower job would help it.
        """
        parts = (part for second in self.seconds()[:LOAD_SECONDS] for part in zip(Store, second, strict=True))
        counts = total(counted for store, counted in parts if store not in fenced)
        measured = self._everything()
        latencies = [one.latency_seconds for one in measured if one.latency_seconds is not None]
        return Load(lag_seconds, max(latencies, default=None), counts.calls, counts.faults)

    def side(self, store: Store) -> Side:
        """Return the recent measurements of one store over all routers."""
        index = 0 if store is Store.A else 1
        counts = total(second[index] for second in self.seconds()[:LOAD_SECONDS])
        latencies: Histogram = Counter()
        operations: Counter[str] = Counter()
        for measured in self._everything():
            latencies.update(measured.latencies.get(store, {}))
            operations.update(measured.operations.get(store, {}))
        direct = self._direct()
        seconds = direct[1].seconds[:LOAD_SECONDS] if direct is not None else ()
        directly = total(second[index] for second in seconds)
        return Side(
            counts.calls / LOAD_SECONDS,
            quantile(latencies, P99),
            directly.calls / LOAD_SECONDS,
            quantile(latencies, MEDIAN),
            tuple((name, calls / LOAD_SECONDS) for name, calls in operations.most_common()),
        )

    def history(self) -> tuple[tuple[Counts, Counts], ...]:
        """Return A's and B's counts over all live routers in each past period, newest first."""
        reports = [measured.periods for measured in self._everything()]
        longest = max((len(periods) for periods in reports), default=0)
        return tuple(
            (
                total(periods[index][0] for periods in reports if index < len(periods)),
                total(periods[index][1] for periods in reports if index < len(periods)),
            )
            for index in range(longest)
        )

    def totals(self) -> Totals:
        """Return the sum over live routers."""
        return reduce(Totals.plus, (measured.totals for measured in self._all()))

    def clients(self) -> list[OldClient]:
        """Return the old clients of live routers, each once, the most recent caller first."""
        now = self._clock.monotonic()
        ages = [0.0, *(now - self._others[name].seen_at for name, _ in self._fresh_others())]
        found: dict[str, OldClient] = {}
        for measured, age in zip(self._all(), ages, strict=True):
            for name, version, calls, idle in measured.clients:
                known = found.get(name, OldClient(name, version, 0, idle + age))
                found[name] = OldClient(
                    name, min(version, known.schema_version), known.calls + calls, min(idle + age, known.idle_seconds)
                )
        return sorted(found.values(), key=lambda client: client.idle_seconds)

    def routers(self) -> list[tuple[str, int, float]]:
        """Return name, generation and age of the last report of each router, this one first."""
        now = self._clock.monotonic()
        others = [(name, o.measured.generation, now - o.seen_at) for name, o in self._others.items() if o.measured]
        return [(self._router, self._sources.generation(), 0.0), *sorted(others)]

    def identities(self) -> list[tuple[str, Identity | None, float]]:
        """Return name, identity and age of the last report of each live router, this one first."""
        now = self._clock.monotonic()
        others = [(name, one.identity, now - self._others[name].seen_at) for name, one in self._fresh_others()]
        return [(self._router, self._sources.identity(), 0.0), *sorted(others, key=lambda other: other[0])]

    def without(self, setting_field: str) -> list[str]:
        """Return the names of the live routers that do not support this field of the setting."""
        return sorted(name for name, one in self._fresh_others() if setting_field not in one.setting_fields)

    def ledger(self) -> LedgerCounts:
        """Return the sum over live routers."""
        return reduce(LedgerCounts.plus, (measured.ledger for measured in self._all()))

    def evidence(self, evidence: Evidence) -> Evidence:
        """Add the measurements to the evidence, if they cover all routers."""
        if not self.fresh:
            return evidence
        _, shadow = self._of_last_run(lambda measured: measured.shadow)
        return replace(
            evidence,
            b_calls=self.recent(Store.B),
            latencies=merged(parity for measured in self._everything() for parity in measured.parities),
            shadow=shadow if shadow.compared else None,
            ledger=self.ledger(),
        )

    def noise(self) -> tuple[int, ShadowCounts]:
        """Return the last run of shadow reads, and the counts of live routers if it compares a store with itself."""
        return self._of_last_run(lambda measured: measured.noise)

    def _of_last_run(self, counts: Callable[[Measured], ShadowCounts]) -> tuple[int, ShadowCounts]:
        everybody = self._all()
        run = max(measured.shadow_run for measured in everybody)
        parts = (counts(measured) for measured in everybody if measured.shadow_run == run)
        return run, reduce(ShadowCounts.plus, parts)

    def _all(self) -> list[Measured]:
        """Return the reports of live routers, this one included."""
        return [self.mine(), *(measured for _, measured in self._fresh_others())]

    def _everything(self) -> list[Measured | DirectCalls]:
        """Return the calls through live routers, and the direct ones."""
        direct = self._direct()
        return [*self._all(), *((direct[1],) if direct is not None else ())]

    def _my_direct(self, now: float) -> DirectCalls:
        meter = self._direct_meter
        return DirectCalls(
            meter.seconds(now),
            {store: meter.recent(store, now) for store in Store},
            tuple(one._replace(operation=f"{one.operation} (direct)") for one in meter.parities(now)),
            meter.latency(now, LOAD_SECONDS),
            {store: meter.latencies(store, now, LOAD_SECONDS) for store in Store},
            meter.answered[Store.B],
            {store: meter.operations(store, now, LOAD_SECONDS) for store in Store},
            meter.periods(now),
        )

    def _direct(self) -> tuple[str, DirectCalls, float] | None:
        """Return the direct calls as the router has seen them that has seen the most, its name and the age of its
        report. Each router reads the calls of all processes of both stores, so a sum would count them repeatedly."""
        now = self._clock.monotonic()
        found = [(name, one.direct, now - self._others[name].seen_at) for name, one in self._fresh_others()]
        seen = [(self._router, self._my_direct(now), 0.0), *((n, calls, age) for n, calls, age in found if calls)]
        # A router that the stores do not answer any more remembers many calls, and sees no fault.
        most = max(calls.last_minute for _, calls, _ in seen)
        seen = [one for one in seen if 2 * one[1].last_minute >= most]
        best = max(seen, key=lambda one: (one[1].weight, one[0]))
        return best if best[1] else None

    def _fresh_others(self) -> list[tuple[str, Measured]]:
        now = self._clock.monotonic()
        others = self._others.items()
        return [(name, o.measured) for name, o in others if o.measured and now - o.seen_at <= FRESH_SECONDS]

    def _take(self, reports: list[Report], now: float) -> None:
        known = self._others
        self._others = {}
        for report in reports:
            other = known.get(report.router)
            if other is None:
                self._others[report.router] = _Other(report.number, now)
            elif other.number == report.number:
                self._others[report.router] = other
            else:
                self._others[report.router] = _Other(report.number, now, self._read(report))

    def _read(self, report: Report) -> Measured | None:
        try:
            return Measured.from_json(report.text)
        except ValueError as error:
            if report.router not in self._unreadable:
                self._unreadable.add(report.router)
                log.warning("the measurements of router %s are ignored: %s", report.router, error)
            return None

    async def _body(self, loop: Loop) -> None:
        await self.exchange()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)


def check_routers(measurement: Measurement, setting_field: str) -> None:
    """Raises RoutersNotReady unless every live router supports this field of the setting."""
    obstacles = [f"router {name} is of an earlier release" for name in measurement.without(setting_field)]
    if not measurement.fresh:
        obstacles.append("the reports of the other routers cannot be read")
    if obstacles:
        raise RoutersNotReady(f"{'; '.join(obstacles)}: nothing was changed")


def answered_by_b(measurement: Measurement) -> dict[str, int]:
    """Return the client calls that B has answered, by router; the direct ones under a name of their own."""
    found = {router: answered.by_b for router, answered in measurement.answered().items()}
    if (direct := measurement.direct_answered_by_b()) is not None:
        # The count of another router begins elsewhere, so it is another name.
        found[f"direct calls, read by {direct[0]}"] = direct[1]
    return found

"""Runs a flip storm, under existing load or its own, and reports losses and leaks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from libs.eventlog.address import LogAddress, open_event_log
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from libs.proving.history import linearizability
from libs.proving.history.linearizability import Report
from libs.proving.trial.arrival import agreed_digests, wait_until_arrived
from libs.proving.trial.chaos import ACTOR, State, Storm, StormPlan
from libs.proving.trial.errors import TrialFailed
from libs.proving.trial.evidence import Evidence, StoreContent, gather
from libs.proving.trial.load import Load, LoadPlan
from libs.proving.trial.stores import Reader, StoreAccess, open_readers
from libs.proving.trial.verdict import Result, judge
from libs.proving.trial.vitals import KINDS, Ask, Growth, Tolerance, growth, look
from libs.proving.trial.walk import Walk

SETTLE_SECONDS = 30.0
"""How long the system may take to settle after the storm."""
QUIET_SECONDS = 60.0
AGREE_SECONDS = 20.0
"""How long a bucket must differ at every check to count as different."""
PING_PONG = 10
"""Number of records that are listed for the most handoffs."""

MUST_BE_ZERO = ("lost", "duplicated", "stale_strict_reads", "not_linearizable")


@dataclass(frozen=True, slots=True)
class Setup:
    """The system under the storm. Routers are given by their control addresses."""

    controls: Sequence[str]
    token: str = ""
    actor: str = ACTOR
    """Actor of the flips, for the journal."""
    public: Sequence[str] = ()
    """Addresses for its own load; empty: only existing load."""
    stores: Sequence[StoreAccess] = ()
    """Internal listeners of all processes of both stores, for their vitals and for the ledger."""
    event_log: LogAddress | None = None
    direct: Sequence[str] = ()
    """Public addresses of all processes of both stores, for the direct clients of its own load."""
    xds: str = ""
    """Target of its clients with xDS."""
    load: LoadPlan = field(default_factory=LoadPlan)
    tolerance: Tolerance = field(default_factory=Tolerance)
    settle_seconds: float = SETTLE_SECONDS

    @property
    def ledger(self) -> Sequence[StoreAccess]:
        """A process of each store, if both are known."""
        first = {access.store: access for access in reversed(self.stores)}
        return [first["A"], first["B"]] if first.keys() >= {"A", "B"} and self.event_log is not None else []


@dataclass(slots=True)
class StormReport:
    """The result of a storm. None: not judged, for lack of the needed addresses."""

    seed: int
    seconds: float = 0.0
    flips: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    calls: int | None = None
    handoffs: int = 0
    ping_pong: Sequence[tuple[str, int]] = ()
    counts: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(MUST_BE_ZERO))
    growths: Sequence[Growth] = ()
    problems: list[str] = field(default_factory=list)
    result: Result | None = None

    @property
    def ok(self) -> bool:
        """Every judged count that must be zero is zero."""
        return not self.problems

    def leaked(self, kind: str) -> int:
        """Sum over all processes."""
        return sum(one.leaks[kind] for one in self.growths)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "flips": dict(self.flips),
            "refused": dict(self.refused),
            "calls": self.calls,
            **self.counts,
            "handoffs": self.handoffs,
            "ping_pong": [{"key": key, "handoffs": times} for key, times in self.ping_pong],
            "leaked": {kind: self.leaked(kind) for kind in KINDS},
            "processes": [one.as_dict() for one in self.growths],
            "problems": self.problems,
        }


async def run_storm(setup: Setup, plan: StormPlan, directory: Path, say: Callable[[str], None]) -> StormReport:
    """Run a storm, and restore the setting in the end, also after an interrupt. ``directory``: folder for the histories
    of its own load.

    Raises TrialFailed if it cannot begin or the setting cannot be restored.
    """
    report = StormReport(plan.seed)
    async with AsyncExitStack() as stack:
        storm = await stack.enter_async_context(Storm.open(setup.controls, setup.token, setup.actor))
        readers = await stack.enter_async_context(open_readers(setup.stores))
        wanted, flags = await storm.begin()
        asks = _processes(storm, readers)
        before = await look(asks)
        handoffs = sum(status.handoffs for status in await storm.statuses())
        # Names and requests of its own, so that leftovers of another load are no starting point.
        plan_of_load = replace(setup.load, word=f"storm-{secrets.token_hex(4)}", seed=secrets.randbits(32))
        load = None
        if setup.public:
            load = Load(plan_of_load, setup.public, directory, direct=setup.direct, xds=setup.xds)
        began = time.monotonic()
        try:
            await _rage(storm, plan, flags, load, say)
        finally:
            report.seconds = time.monotonic() - began
            # In a task of its own: an interrupt should end the storm, not leave the flags as they are.
            await asyncio.shield(asyncio.ensure_future(storm.restore(wanted)))
        await _take_stock(report, storm, load, handoffs)
        report.growths = await growth(asks, before, setup.tolerance, setup.settle_seconds)
        _judge_growths(report)
        if load is not None:
            await _judge_load(report, setup, load)
    return report


async def _rage(
    storm: Storm, plan: StormPlan, flags: Sequence[str], load: Load | None, say: Callable[[str], None]
) -> None:
    if load is None:
        await storm.rage(plan, flags, say)
        return

    def label(text: str) -> None:
        load.label(text)
        say(text)

    async with load.running():
        await storm.rage(plan, flags, label)


async def _take_stock(report: StormReport, storm: Storm, load: Load | None, handoffs: int) -> None:
    statuses = await storm.statuses()
    report.flips, report.refused = storm.flips, storm.refused
    report.handoffs = sum(status.handoffs for status in statuses) - handoffs
    report.ping_pong = _most_moved(statuses)
    report.calls = load.stats.attempts if load is not None else None
    if not sum(report.flips.values()):
        report.problems.append(f"nothing was flipped: {dict(report.refused)}")


def _processes(storm: Storm, readers: Sequence[Reader]) -> dict[str, Ask]:
    asks: dict[str, Ask] = {
        f"router {address}": partial(storm.vitals, place) for place, address in enumerate(storm.addresses)
    }
    asks |= {f"store {reader.access.store} {reader.access.address}": partial(_store, reader) for reader in readers}
    return asks


async def _store(reader: Reader) -> telemetry_pb2.Vitals:
    return (await reader.status()).vitals


def _most_moved(statuses: Sequence[pb.GetStatusResponse]) -> list[tuple[str, int]]:
    moved: Counter[str] = Counter()
    for status in statuses:
        moved.update({entry.key: entry.handoffs for entry in status.ping_pong})
    return moved.most_common(PING_PONG)


def _judge_growths(report: StormReport) -> None:
    for one in report.growths:
        report.problems += [f"{one.name}: leaked {much} {kind}" for kind, much in one.leaks.items() if much]


async def _judge_load(report: StormReport, setup: Setup, load: Load) -> None:
    if not setup.ledger:
        judged = await asyncio.to_thread(linearizability.check, load.calls())
        _count_unlinear(report, judged)
        return
    async with (
        open_readers(setup.ledger) as readers,
        open_event_log(_log(setup)) as log,
        Walk.open(setup.controls, "chaos", setup.token) as walk,
    ):
        await walk.settled()
        calls = load.calls()
        names = {call.key for call in calls}
        await wait_until_arrived(readers, log, names, QUIET_SECONDS)
        gathered = await gather(calls, readers, log)
        evidence = _only(gathered, names, await agreed_digests(readers, AGREE_SECONDS))
    await asyncio.to_thread(evidence.save, load.directory)
    report.result = result = await asyncio.to_thread(judge, evidence)
    report.counts = {name: result.tallies[name].count for name in MUST_BE_ZERO}
    report.problems += result.problems


def _count_unlinear(report: StormReport, judged: Report) -> None:
    report.counts["not_linearizable"] = len(judged.failures)
    report.problems += [f"not linearizable: {failure}" for failure in judged.failures[:10]]


def _only(evidence: Evidence, names: set[str], digests: Sequence[Mapping[int, int]]) -> Evidence:
    """Keep the records of this load only, since other clients may write others even now. The digests were compared
    until they agreed or the time was up."""
    contents = [
        StoreContent(
            content.store,
            tuple(one for one in content.records if one.name in names),
            dict(agreed),
            content.bucket_owners,
        )
        for content, agreed in zip(evidence.stores, digests, strict=True)
    ]
    events = tuple(event for event in evidence.events if event.name in names)
    return replace(evidence, stores=tuple(contents), events=events)


def _log(setup: Setup) -> LogAddress:
    if setup.event_log is None:
        raise TrialFailed("the ledger needs the event log")
    return setup.event_log


def describe(wanted: State) -> str:
    """The state that is restored, in words."""
    held = ", held at A" if wanted.hold else ""
    flags = "".join(f", {name}={str(value).lower()}" for name, value in sorted(wanted.flags.items()))
    return f"{wanted.phase} {wanted.canary_permille / 10:g} %{held}{flags}"

"""The evidence of the gates as metrics, under the names that the alerting rules use (deploy/alerts.yaml). Pure.

An unknown figure has no value, so an alert on its absence can report it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from libs.telemetry.latency import Bounds, bounds
from services.router.core.evidence import Evidence
from services.router.core.gates.data import mismatches
from services.router.core.gates.service import write_deltas
from services.router.core.thresholds import Limits


class Reading(NamedTuple):
    value: float
    labels: Mapping[str, str] = {}


Readings = Iterator[Reading]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    description: str
    read: Callable[[Evidence, Limits], Readings]


def _lag(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.lag_seconds is not None:
        yield Reading(evidence.lag_seconds)


def _parked(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.parked is not None:
        yield Reading(evidence.parked)


def _unauthenticated(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.unauthenticated is not None:
        yield Reading(evidence.unauthenticated)


def _risks(evidence: Evidence, limits: Limits) -> Readings:
    for risk in evidence.risks or ():
        yield Reading(risk.old, {"store": risk.store})


def _errors(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.b_calls is not None:
        yield Reading(evidence.b_calls.rate)


def _calls(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.b_calls is not None:
        yield Reading(evidence.b_calls.calls)


def _inconsistency(evidence: Evidence, limits: Limits) -> Readings:
    bad, compared = mismatches(evidence.shadow)
    if compared:
        yield Reading(bad / compared)


def _compared(evidence: Evidence, limits: Limits) -> Readings:
    _, compared = mismatches(evidence.shadow)
    yield Reading(compared)


def _lock_wait(evidence: Evidence, limits: Limits) -> Readings:
    yield from _bounds(bounds(evidence.lock_waits or {}), {})


def _p99(evidence: Evidence, limits: Limits) -> Readings:
    for parity in evidence.latencies or ():
        for store, latencies in (("A", parity.a), ("B", parity.b)):
            yield from _bounds(bounds(latencies), {"operation": parity.operation, "store": store})


def _write_delta(evidence: Evidence, limits: Limits) -> Readings:
    for operation, (least, most) in write_deltas(evidence, limits).items():
        yield Reading(least, {"operation": operation, "bound": "lower"})
        yield Reading(most, {"operation": operation, "bound": "upper"})


def _bounds(found: Bounds, labels: Mapping[str, str]) -> Readings:
    for bound, value in (("lower", found.lower), ("upper", found.upper)):
        if value is not None:
            yield Reading(value, {**labels, "bound": bound})


def _checked(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.ledger is not None:
        yield Reading(evidence.ledger.checked)


def _lost(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.ledger is not None:
        yield Reading(evidence.ledger.lost)


def _diverged(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.compared is not None:
        yield Reading(evidence.compared.share)


def _left(evidence: Evidence, limits: Limits) -> Readings:
    if evidence.compared is not None:
        yield Reading(evidence.compared.left)


METRICS = (
    Metric("baton.lag", "s", "The larger lag of the two feeds", _lag),
    Metric("baton.parked.events", "{event}", "Events that a store could not apply, or the log refused", _parked),
    Metric(
        "baton.unauthenticated.events",
        "{event}",
        "Parked events without a right authentication code",
        _unauthenticated,
    ),
    Metric("baton.log.risk.events", "{event}", "Events that a store has not read and the log may soon drop", _risks),
    Metric("baton.errors.share", "1", "Share of B's calls of the last minutes that failed by its fault", _errors),
    Metric("baton.errors.calls", "{call}", "B's calls of the last minutes", _calls),
    Metric("baton.inconsistency.share", "1", "Share of the compared reads that disagree", _inconsistency),
    Metric("baton.compared.reads", "{read}", "Compared reads with a result", _compared),
    Metric("baton.reconcile.share", "1", "Share of the records that differed when the stores were compared", _diverged),
    Metric("baton.reconcile.left", "{record}", "Differing records that were not repaired", _left),
    Metric("baton.lock.wait.p99", "s", "Bounds of P99 of a write's wait for its write lock at B", _lock_wait),
    Metric("baton.call.p99", "s", "Bounds of P99 of an operation at a store, in the same minutes at both", _p99),
    Metric("baton.write.delta", "s", "Bounds of P99 of a write at B minus P99 at A", _write_delta),
    Metric("baton.ledger.checked", "{write}", "Acknowledged writes that were checked at the stores", _checked),
    Metric("baton.ledger.lost", "{write}", "Acknowledged writes that their owner does not have", _lost),
)
"""Prometheus names have underscores instead of dots, and end in `_seconds` for seconds."""

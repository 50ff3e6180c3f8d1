"""The evidence of the gates as metrics, under the names that the alerting rules use. Pure.

An unknown figure has no value, so an alert on its absence can report it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from libs.telemetry.instruments import Reading
from libs.telemetry.latency import Bounds, bounds
from services.router.core.evidence import Evidence
from services.router.core.gates.data import mismatches, noise_share
from services.router.core.gates.service import write_deltas
from services.router.core.thresholds import Limits

Readings = Iterator[Reading]


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
        yield Reading(max(0.0, bad / compared - noise_share(evidence, limits)))


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


READERS: Mapping[str, Callable[[Evidence, Limits], Readings]] = {
    "baton.lag": _lag,
    "baton.parked.events": _parked,
    "baton.unauthenticated.events": _unauthenticated,
    "baton.log.risk.events": _risks,
    "baton.errors.share": _errors,
    "baton.errors.calls": _calls,
    "baton.inconsistency.share": _inconsistency,
    "baton.compared.reads": _compared,
    "baton.reconcile.share": _diverged,
    "baton.reconcile.left": _left,
    "baton.lock.wait.p99": _lock_wait,
    "baton.call.p99": _p99,
    "baton.write.delta": _write_delta,
    "baton.ledger.checked": _checked,
    "baton.ledger.lost": _lost,
}
"""Readers by the metric's name in the table of metrics (`libs.telemetry.table`)."""

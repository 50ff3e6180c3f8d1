"""Limits of gates and of automatic rollback that operators change while the migration runs, as one table. Pure.

Each router's own settings give the usual values (`RouterSettings`, under the same names). The migration's setting may
overlay any of them (`Setting.limits`); then all routers go by that value, within their refresh interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from libs.errors import InvalidField
from libs.text import plain
from services.router.core.evidence import Limits
from services.router.core.judge import RollbackLimits

_DAY = 86_400.0
_MANY = 100_000_000
LEAST_LATENCY_CALLS = 299
"""Fewer show no upper bound of P99."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit under the name that operators know, in the unit that they type."""

    name: str
    field: str
    """Of `Limits` or `RollbackLimits`."""
    least: float
    most: float
    sentence: str
    unit: float = 1.0
    """The typed value times this is the field's."""
    is_whole: bool = False
    of_rollback: bool = False
    gate: str = ""
    """The gate that goes by it."""

    def check(self, value: float) -> float:
        """Raises InvalidField."""
        inside = math.isfinite(value) and self.least <= value <= self.most
        if not inside or (self.is_whole and value != int(value)):
            kind = "a whole number from" if self.is_whole else "a number from"
            raise InvalidField(self.name, plain(value), f"{kind} {plain(self.least)} to {plain(self.most)}")
        return value

    def typed(self, limits: Limits | RollbackLimits) -> float:
        return float(round(getattr(limits, self.field) / self.unit, 9))

    def stored(self, value: float) -> Any:
        if self.field == "automatic":
            return bool(value)
        return int(value * self.unit) if self.is_whole else value * self.unit


def _percent(name: str, field: str, sentence: str, **more: Any) -> Limit:
    return Limit(name, field, 0.000001, 100.0, sentence, unit=0.01, **more)


def _samples(name: str, field: str, sentence: str, least: float = 1, **more: Any) -> Limit:
    return Limit(name, field, least, _MANY, sentence, is_whole=True, **more)


def _seconds(name: str, field: str, sentence: str, most: float = 3600.0, **more: Any) -> Limit:
    return Limit(name, field, 0.001, most, sentence, **more)


def _days(name: str, field: str, sentence: str, **more: Any) -> Limit:
    return Limit(name, field, 0.000001, 365.0, sentence, unit=_DAY, **more)


_TABLE = (
    _seconds("gate_lag_seconds", "lag_seconds", "Seconds that a store may be behind the other.", gate="lag"),
    _percent(
        "gate_mismatch_percent",
        "mismatch_rate",
        "Percent of the compared reads that may differ.",
        gate="shadow-consistent",
    ),
    _percent(
        "gate_mismatch_alert_percent", "mismatch_alert_rate", "Percent of the compared reads that calls a person."
    ),
    _samples("gate_compared_reads", "compared_reads", "Compared reads that are needed.", gate="shadow-consistent"),
    _percent(
        "gate_error_percent", "error_rate", "Percent of B's calls that may fail, for DUAL_READ.", gate="error-rate"
    ),
    _samples("gate_error_calls", "error_calls", "Calls of B that are needed, for DUAL_READ.", gate="error-rate"),
    _percent(
        "gate_golden_error_percent",
        "golden_error_rate",
        "Percent of B's calls that may fail, for DEPRECATED.",
        gate="golden-metrics",
    ),
    _samples("gate_golden_calls", "golden_calls", "Calls of B that are needed, for DEPRECATED.", gate="golden-metrics"),
    Limit(
        "gate_lock_milliseconds",
        "lock_seconds",
        0.001,
        60_000,
        "Milliseconds that P99 of a write's wait for its lock at B may take.",
        unit=0.001,
        gate="golden-metrics",
    ),
    Limit(
        "gate_write_delta_milliseconds",
        "write_delta_seconds",
        0.001,
        60_000,
        "Milliseconds that P99 of a write at B may be above A's.",
        unit=0.001,
        gate="golden-metrics",
    ),
    Limit(
        "gate_latency_margin_percent",
        "latency_margin",
        0.000001,
        1000,
        "Percent of A's P99 that B's may be above it and count as equal.",
        unit=0.01,
        gate="latency-parity",
    ),
    _samples(
        "gate_latency_calls",
        "latency_calls",
        "Calls of each store, of one operation, that are needed.",
        LEAST_LATENCY_CALLS,
        gate="latency-parity",
    ),
    _samples("gate_ledger_writes", "ledger_writes", "Checked acknowledged writes that are needed.", gate="ledger"),
    _days("gate_audit_days", "audit_seconds", "Days that an audit may be old.", gate="audit"),
    _seconds(
        "gate_compared_seconds",
        "compared_seconds",
        "Seconds that a comparison of all records may be old.",
        _DAY,
        gate="shadow-consistent",
    ),
    _days("gate_rehearsal_days", "rehearsal_seconds", "Days that a rehearsal may be old.", gate="rehearsal"),
    _days("gate_client_days", "client_seconds", "Days without a direct call to A.", gate="no-active-clients"),
    Limit(
        "rollback_automatic",
        "automatic",
        0,
        1,
        "1: B's faults roll back; 0: they call a person.",
        is_whole=True,
        of_rollback=True,
    ),
    _percent("rollback_fault_percent", "fault_rate", "Percent of B's calls that may fail.", of_rollback=True),
    Limit(
        "rollback_seconds", "window_seconds", 6, 50, "Seconds that B must fail for.", is_whole=True, of_rollback=True
    ),
    Limit(
        "rollback_calls",
        "least_calls",
        1,
        100_000,
        "Calls of B that are needed in that time.",
        is_whole=True,
        of_rollback=True,
    ),
    _percent(
        "rollback_margin_percent", "margin", "Percent that B's share of faults must exceed A's.", of_rollback=True
    ),
    Limit(
        "rollback_pause_seconds", "pause_seconds", 0, _DAY, "Seconds between two automatic rollbacks.", of_rollback=True
    ),
)

LIMITS: Mapping[str, Limit] = {limit.name: limit for limit in _TABLE}

Overlay = tuple[tuple[str, float], ...]
"""As `Setting.limits` has it: name and typed value, in the order of names."""


def gate_limits(usual: Limits, overlay: Overlay) -> Limits:
    return replace(usual, **_fields(overlay, of_rollback=False))


def rollback_limits(usual: RollbackLimits, overlay: Overlay) -> RollbackLimits:
    return replace(usual, **_fields(overlay, of_rollback=True))


def _fields(overlay: Overlay, *, of_rollback: bool) -> dict[str, Any]:
    """A name of a newer program is left out."""
    known = [(LIMITS[name], value) for name, value in overlay if name in LIMITS]
    return {limit.field: limit.stored(value) for limit, value in known if limit.of_rollback is of_rollback}


def changed(overlay: Overlay, to_set: Mapping[str, float], unset: tuple[str, ...] = ()) -> Overlay:
    """The overlay after a change. Raises InvalidField."""
    for name in (*to_set, *unset):
        if name not in LIMITS:
            raise InvalidField("limit", name, "one of " + ", ".join(LIMITS))
    if both := set(to_set) & set(unset):
        raise InvalidField("limit", sorted(both)[0], "set or unset, not both")
    kept = {name: value for name, value in overlay if name not in unset}
    kept.update({name: LIMITS[name].check(value) for name, value in to_set.items()})
    return tuple(sorted(kept.items()))

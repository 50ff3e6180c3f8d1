"""Gates on how B serves: faults, latency, waits for write locks. Pure."""

from __future__ import annotations

from libs.telemetry.latency import Bounds, bounds
from libs.text import plain
from services.router.core.evidence import Evidence
from services.router.core.gates.data import LAG, lag
from services.router.core.gates.gate import FAIL, INCONCLUSIVE, PASS, Alert, Finding, Gate, Verdict, all_of, by_share
from services.router.core.measure import Parity
from services.router.core.thresholds import Limits, count, milliseconds, percent

ERRORS = percent("gate_error_percent", 0.5, "Percent of B's calls that may fail, for DUAL_READ; must be below.")
ERROR_CALLS = count("gate_error_calls", 600, "Calls of B that are needed, for DUAL_READ.")


def error_rate(evidence: Evidence, limits: Limits) -> Finding:
    return _faults(evidence, limits[ERRORS], limits[ERROR_CALLS], below=True)


def _faults(evidence: Evidence, limit: float, least: int, *, below: bool) -> Finding:
    calls = evidence.b_calls
    if calls is None:
        return Finding(INCONCLUSIVE, "the routers' counts are unknown", 0, least)
    return by_share(calls.faults, calls.calls, limit, least, "calls of B failed by its fault", below=below)


LATENCY_MARGIN = percent(
    "gate_latency_margin_percent", 10, "Tolerance for latency parity, in percent of A's P99.", most=1000.0
)
LATENCY_CALLS = count(
    "gate_latency_calls",
    300,
    "Calls of one operation that are needed of each store. Fewer than 299 give no upper bound of P99.",
    least=299,
)


def latency_parity(evidence: Evidence, limits: Limits) -> Finding:
    """FAIL if one operation is slower at B. PASS if no operation with enough calls is, among them a read and a write.

    An operation is slower if B's lower bound of P99 is above A's upper bound. It is not slower if B's upper bound is at
    most A's lower bound plus the tolerance. In between, more calls are needed.
    """
    least = limits[LATENCY_CALLS]
    if evidence.latencies is None:
        return Finding(INCONCLUSIVE, "the routers' measurements are unknown", 0, least)
    verdicts: list[Verdict] = []
    shown: list[str] = []
    kinds: set[bool] = set()
    for parity, a, b in _comparable(evidence, limits):
        verdict = _slower(a, b, limits[LATENCY_MARGIN])
        verdicts.append(verdict)
        kinds.add(parity.is_read)
        shown.append(f"{parity.operation} {verdict.value}: B {_range(b)}, A {_range(a)}")
    samples = max((min(p.a.total(), p.b.total()) for p in evidence.latencies), default=0)
    if FAIL in verdicts:
        return Finding(FAIL, "; ".join(shown), samples, least)
    if INCONCLUSIVE in verdicts:
        return Finding(INCONCLUSIVE, "; ".join([*shown, "more calls are needed"]), samples, least)
    if len(kinds) < 2:
        missing = "reads and writes" if not kinds else "writes" if True in kinds else "reads"
        return Finding(INCONCLUSIVE, "; ".join([*shown, _too_few(missing, least)]), samples, least)
    return Finding(PASS, "; ".join(shown), samples, least)


def _comparable(evidence: Evidence, limits: Limits) -> list[tuple[Parity, Bounds, Bounds]]:
    """Operations with enough calls at both stores, and the bounds of P99 at A and at B."""
    found = [(parity, bounds(parity.a), bounds(parity.b)) for parity in evidence.latencies or ()]
    return [(p, a, b) for p, a, b in found if min(a.samples, b.samples) >= limits[LATENCY_CALLS]]


def _slower(a: Bounds, b: Bounds, margin: float) -> Verdict:
    if a.lower is None or a.upper is None or b.lower is None or b.upper is None:
        return INCONCLUSIVE
    if b.lower > a.upper:
        return FAIL
    return PASS if b.upper <= a.lower * (1 + margin) else INCONCLUSIVE


def _range(found: Bounds) -> str:
    lower, upper = ("?" if bound is None else f"{plain(1000 * bound)}" for bound in (found.lower, found.upper))
    return f"{lower} to {upper} ms ({found.samples} calls)"


def _too_few(calls: str, least: int) -> str:
    return f"both stores must have served {least} {calls} of one operation in the same minutes"


GOLDEN_ERRORS = percent("gate_golden_error_percent", 0.1, "Percent of B's calls that may fail, for DEPRECATED.")
GOLDEN_CALLS = count("gate_golden_calls", 3000, "Calls of B that are needed, for DEPRECATED.")
LOCK_WAIT = milliseconds("gate_lock_milliseconds", 50, "Milliseconds that a write at B may wait for its lock, at P99.")
WRITE_DELTA = milliseconds(
    "gate_write_delta_milliseconds", 100, "Milliseconds that P99 of a write at B may be above A's; must be below."
)


def golden_metrics(evidence: Evidence, limits: Limits) -> Finding:
    """The worst verdict of four metrics.

    * errors: server faults of B's calls in the last minutes, at all routers;
    * locks: P99 of the time that writes at B wait for their write lock; most do not wait;
    * lag: the verdict of that gate;
    * delta: P99 of a write at B minus that of the same operation at A, in the same minutes. No call writes to both
      stores, so this is the difference that clients feel.
    """
    errors = _faults(evidence, limits[GOLDEN_ERRORS], limits[GOLDEN_CALLS], below=False)
    parts = {
        "errors": errors,
        "locks": _lock(evidence, limits),
        "lag": lag(evidence, limits),
        "delta": _write_delta(evidence, limits),
    }
    return all_of(parts, errors)


def _lock(evidence: Evidence, limits: Limits) -> Finding:
    if not evidence.lock_waits:
        return Finding(INCONCLUSIVE, "B has not reported how long writes wait for their lock")
    found = bounds(evidence.lock_waits)
    shown = f"P99 of a write's wait for its lock at B is {_range(found)}"
    if found.lower is not None and found.lower > limits[LOCK_WAIT]:
        return Finding(FAIL, shown)
    if found.upper is None or found.upper > limits[LOCK_WAIT]:
        return Finding(INCONCLUSIVE, f"{shown}; more writes are needed")
    return Finding(PASS, shown)


def _write_delta(evidence: Evidence, limits: Limits) -> Finding:
    deltas = write_deltas(evidence, limits)
    if not deltas:
        return Finding(INCONCLUSIVE, _too_few("writes", limits[LATENCY_CALLS]))
    least, most = (max(parts) for parts in zip(*deltas.values(), strict=True))
    shown = f"P99 of writes at B is {plain(1000 * least)} to {plain(1000 * most)} ms above A's"
    if least >= limits[WRITE_DELTA]:
        return Finding(FAIL, shown)
    return Finding(PASS if most < limits[WRITE_DELTA] else INCONCLUSIVE, shown)


def write_deltas(evidence: Evidence, limits: Limits) -> dict[str, tuple[float, float]]:
    """Bounds of P99 at B minus P99 at A, in seconds, by operation that writes."""
    return {
        parity.operation: (b.lower - a.upper, b.upper - a.lower)
        for parity, a, b in _comparable(evidence, limits)
        if not parity.is_read and a.lower is not None and a.upper is not None
        if b.lower is not None and b.upper is not None
    }


GATES = (
    Gate(
        name="error-rate",
        sentence="B's calls do not fail.",
        requires="server faults < $gate_error_percent",
        verdict=error_rate,
        thresholds=(ERRORS, ERROR_CALLS),
        page="b-fails",
        runbook="baton status: calls and faults of B; then B's log. Too few calls: a larger canary",
    ),
    Gate(
        name="latency-parity",
        sentence="B is as fast as A.",
        requires="P99 of B <= P99 of A (within $gate_latency_margin_percent), by bounds with 95 % confidence",
        verdict=latency_parity,
        thresholds=(LATENCY_MARGIN, LATENCY_CALLS),
        page="b-slow",
        runbook="send both stores calls of one operation within an hour (a canary of 50 %); B slower: see its database",
        alerts=(
            Alert(
                "BatonSlower",
                "ticket",
                'max by (operation) (baton_call_p99_seconds{store="B",bound="lower"})'
                ' > max by (operation) (baton_call_p99_seconds{store="A",bound="upper"})',
                "P99 of {{ $labels.operation }} is higher at B than at A.",
                "baton status: gate latency-parity; then B's database and its pool.",
                lasting="5m",
            ),
        ),
    ),
    Gate(
        name="golden-metrics",
        sentence="Errors, locks, lag and latency are within their limits.",
        requires="server faults <= $gate_golden_error_percent, locks <= $gate_lock_milliseconds,"
        " lag <= $gate_lag_seconds, writes < $gate_write_delta_milliseconds above A's",
        verdict=golden_metrics,
        thresholds=(GOLDEN_ERRORS, GOLDEN_CALLS, LOCK_WAIT, WRITE_DELTA, LATENCY_CALLS, LAG),
        page="b-fails",
        runbook="baton status: the part that does not pass; for a part without samples, an operator decides",
        alerts=(
            Alert(
                "BatonErrors",
                "page",
                "max(baton_errors_share) > $gate_golden_error_percent"
                " and max(baton_errors_calls) >= $gate_golden_calls",
                "{{ $value | humanizePercentage }} of B's calls fail by its fault.",
                "B's log. Above 5 % for 30 s Baton rolls back automatically; baton rollback OFF does it now.",
            ),
            Alert(
                "BatonWriteDelta",
                "page",
                'max by (operation) (baton_write_delta_seconds{bound="lower"}) >= $gate_write_delta_milliseconds',
                "P99 of {{ $labels.operation }} at B is at least {{ $value | humanizeDuration }} above A's.",
                "baton status: gate golden-metrics; then B's database. A smaller canary sends traffic back to A.",
                lasting="1m",
            ),
            Alert(
                "BatonLockWait",
                "ticket",
                'max(baton_lock_wait_p99_seconds{bound="lower"}) > $gate_lock_milliseconds',
                "P99 of a write's wait for its lock at B is at least {{ $value | humanizeDuration }}.",
                "A record with many concurrent writes, or a slow Redis: baton_lock_acquisition_duration_seconds.",
                lasting="1m",
            ),
            Alert(
                "BatonLockServerAway",
                "page",
                "max(baton_lock_server_away) == 1",
                "A process of B cannot reach Redis.",
                "Start Redis. Writes go on by version, slower on busy records; leases are refused until then.",
                lasting="1m",
            ),
            Alert(
                "BatonLocksLost",
                "ticket",
                "sum(increase(baton_lock_lost_total[10m])) > 0",
                "Locks disappeared while they were held.",
                "Redis was flushed, restarted or unreachable for seconds. No write is lost: versions decide.",
            ),
        ),
    ),
)

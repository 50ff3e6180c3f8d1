"""How B serves: faults, latency, waits for locks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from libs.telemetry.latency import Bounds, bounds
from libs.text import plain
from services.router.core.evidence import Evidence, Limits
from services.router.core.gates.data import lag
from services.router.core.gates.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Gate,
    Judgement,
    Verdict,
    all_of,
    percent,
    share_below,
)
from services.router.core.measure import Parity


def error_rate(evidence: Evidence, limits: Limits) -> Judgement:
    return _faults(evidence, limits.error_rate, limits.error_calls, below=True)


def latency_parity(evidence: Evidence, limits: Limits) -> Judgement:
    """FAIL when an operation is shown to be slower at B. PASS when every operation that both stores have served often
    enough is shown not to be, and at least one read and one write are among them.

    An operation is shown to be slower when B's lower bound is above A's upper one, and not to be when B's upper bound
    is at most A's lower one and the margin.
    """
    least = limits.latency_calls
    if evidence.latencies is None:
        return Judgement(INCONCLUSIVE, "the routers' measurements are not known", 0, least)
    verdicts: list[Verdict] = []
    shown: list[str] = []
    kinds: set[bool] = set()
    for parity, a, b in _comparable(evidence, limits):
        verdict = _slower(a, b, limits.latency_margin)
        verdicts.append(verdict)
        kinds.add(parity.is_read)
        shown.append(f"{parity.operation} {verdict.value}: B {_range(b)}, A {_range(a)}")
    samples = _most_samples(evidence)
    if FAIL in verdicts:
        return Judgement(FAIL, "; ".join(shown), samples, least)
    if INCONCLUSIVE in verdicts:
        return Judgement(INCONCLUSIVE, "; ".join([*shown, "more calls tell more"]), samples, least)
    if len(kinds) < 2:
        lacking = "reads and writes" if not kinds else "writes" if True in kinds else "reads"
        return Judgement(INCONCLUSIVE, "; ".join([*shown, _lacking(lacking, least)]), samples, least)
    return Judgement(PASS, "; ".join(shown), samples, least)


def golden_metrics(evidence: Evidence, limits: Limits) -> Judgement:
    """All of them: the worst verdict.

    Errors: server faults of B's calls, over all routers, in the last minutes. Locks: P99 of the time that a write waits
    for its turn at B; most wait for nobody. Lag: the worse feed's, as the gate of that name. Delta: by how much P99 of
    one kind of write is higher at B than at A, in the same minutes; there is no call that writes to both stores, so
    this is what a client feels of the other store.
    """
    errors = _faults(evidence, limits.golden_error_rate, limits.golden_calls, below=False)
    parts = {
        "errors": errors,
        "locks": _lock(evidence, limits),
        "lag": lag(evidence, limits),
        "delta": _write_delta(evidence, limits),
    }
    return all_of(parts, errors)


def _faults(evidence: Evidence, limit: float, least: int, *, below: bool) -> Judgement:
    calls = evidence.b_calls
    if calls is None:
        return Judgement(INCONCLUSIVE, "the routers' counts are not known", 0, least)
    return share_below(calls.faults, calls.calls, limit, least, "calls of B failed by its fault", below=below)


def _comparable(evidence: Evidence, limits: Limits) -> list[tuple[Parity, Bounds, Bounds]]:
    """Operations that both stores have served often enough, with the bounds of P99 at A and at B."""
    found = [(parity, bounds(parity.a), bounds(parity.b)) for parity in evidence.latencies or ()]
    return [(p, a, b) for p, a, b in found if min(a.samples, b.samples) >= limits.latency_calls]


def _most_samples(evidence: Evidence) -> int:
    return max((min(p.a.total(), p.b.total()) for p in evidence.latencies or ()), default=0)


def _slower(a: Bounds, b: Bounds, margin: float) -> Verdict:
    if a.lower is None or a.upper is None or b.lower is None or b.upper is None:
        return INCONCLUSIVE
    if b.lower > a.upper:
        return FAIL
    return PASS if b.upper <= a.lower * (1 + margin) else INCONCLUSIVE


def _range(found: Bounds) -> str:
    lower, upper = ("?" if bound is None else f"{plain(1000 * bound)}" for bound in (found.lower, found.upper))
    return f"{lower} to {upper} ms ({found.samples} calls)"


def _lacking(what: str, least: int) -> str:
    return f"both stores must have served {least} {what} of one operation in the same minutes"


def _lock(evidence: Evidence, limits: Limits) -> Judgement:
    if not evidence.turn_waits:
        return Judgement(INCONCLUSIVE, "B has not told how long writes wait for their turn")
    found = bounds(evidence.turn_waits)
    shown = f"P99 of a write's wait for its turn at B is {_range(found)}"
    if found.lower is not None and found.lower > limits.lock_seconds:
        return Judgement(FAIL, shown)
    if found.upper is None or found.upper > limits.lock_seconds:
        return Judgement(INCONCLUSIVE, f"{shown}; more writes tell more")
    return Judgement(PASS, shown)


def write_deltas(evidence: Evidence, limits: Limits) -> dict[str, tuple[float, float]]:
    """By how many seconds P99 of each write is higher at B than at A, at least and at most."""
    return {
        parity.operation: (b.lower - a.upper, b.upper - a.lower)
        for parity, a, b in _comparable(evidence, limits)
        if not parity.is_read and a.lower is not None and a.upper is not None
        if b.lower is not None and b.upper is not None
    }


def _write_delta(evidence: Evidence, limits: Limits) -> Judgement:
    deltas = write_deltas(evidence, limits)
    if not deltas:
        return Judgement(INCONCLUSIVE, _lacking("writes", limits.latency_calls))
    least, most = (max(parts) for parts in zip(*deltas.values(), strict=True))
    shown = f"P99 of writes at B is {plain(1000 * least)} to {plain(1000 * most)} ms above A's"
    if least >= limits.write_delta_seconds:
        return Judgement(FAIL, shown)
    return Judgement(PASS if most < limits.write_delta_seconds else INCONCLUSIVE, shown)


GATES: Sequence[Gate] = (
    Gate(
        "error-rate",
        "B's calls do not fail.",
        lambda limits: f"server faults < {percent(limits.error_rate)}",
        error_rate,
        "baton status: calls and faults of B; then B's log. Too few calls: a larger canary",
    ),
    Gate(
        "latency-parity",
        "B is as fast as A.",
        lambda limits: f"P99 of B <= P99 of A (within {percent(limits.latency_margin)}), by bounds that hold with 95 %",
        latency_parity,
        "give both stores traffic of one kind within the hour (a canary of 50 %); slower at B: look at its database",
    ),
    Gate(
        "golden-metrics",
        "Errors, locks, lag and latency are within their limits.",
        lambda limits: (
            f"server faults <= {percent(limits.golden_error_rate)}, locks <= {plain(1000 * limits.lock_seconds)} ms,"
            f" lag <= {plain(limits.lag_seconds)} s, writes < {plain(1000 * limits.write_delta_seconds)} ms above A's"
        ),
        golden_metrics,
        "baton status: the part that does not pass; what is not measured must be judged by a person",
    ),
)

"""A and B side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.core.gates.service import LATENCY_MARGIN
from services.router.core.measure import PERIOD_SECONDS, PERIODS
from services.router.web.view.words import NOT_KNOWN, count, duration, milliseconds, rate, share, store

SPARK_WIDTH, SPARK_HEIGHT = 90, 24
"""Units of a sparkline's drawing: one for each period, and the height of its highest value."""


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    unit: str = ""
    note: str = ""
    tone: str = ""
    """good, warn or bad: shown as a colour and an icon; "" for neither."""


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    cells: Sequence[Cell]
    """Cells of A and of B."""
    hint: str = ""
    is_part: bool = False
    """The row is a part of the one above."""


@dataclass(frozen=True, slots=True)
class Spark:
    """A line of calls per second over the last quarter of an hour, and bars of faults."""

    points: str
    """Points of an SVG polyline."""
    faults: Sequence[tuple[int, float, float]]
    """Rectangles: x, y, height."""
    label: str
    """The line in words, for a screen reader."""


@dataclass(frozen=True, slots=True)
class Meter:
    """P99 of B against its limit, as lengths of 100."""

    value: float
    limit: float
    is_over: bool


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    backend: str
    state: Cell
    note: str
    spark: Spark


@dataclass(frozen=True, slots=True)
class Stores:
    sides: Sequence[Side]
    rows: Sequence[Row]
    meter: Meter | None
    totals: Sequence[tuple[str, str]]
    """Counts of both stores together: label and number."""


def stores(status: pb.GetStatusResponse, limits: Mapping[str, float] | None) -> Stores:
    """`limits`: values in force by name, as `ListLimits` returns them; None if they are not known."""
    both = {store(one.store): one for one in status.stores}
    calls = {store(one.store): one for one in status.measured}
    a, b = (both.get(name, pb.StoreStatus()) for name in "AB")
    at_a, at_b = (calls.get(name, pb.MeasuredCalls()) for name in "AB")
    limit = _limit(at_a, limits)
    return Stores(
        sides=[_side("A", a, at_a), _side("B", b, at_b)],
        rows=_rows((a, b), (at_a, at_b), limit),
        meter=_meter(at_b, limit),
        totals=[
            ("handoffs", count(status.handoffs)),
            ("stale reads", count(status.stale_reads)),
            ("unavailable", count(status.unavailable)),
        ],
    )


def _side(name: str, status: pb.StoreStatus, calls: pb.MeasuredCalls) -> Side:
    if not status.reachable:
        state = Cell("unreachable", tone="bad")
    elif not status.serving:
        state = Cell("not serving", tone="bad")
    else:
        state = Cell("serves", tone="good")
    return Side(name, status.backend, state, status.note, spark(calls.history_calls, calls.history_faults))


def _rows(
    both: tuple[pb.StoreStatus, pb.StoreStatus],
    calls: tuple[pb.MeasuredCalls, pb.MeasuredCalls],
    limit_seconds: float | None,
) -> list[Row]:
    def row(label: str, cell: Callable[[pb.StoreStatus], Cell], hint: str = "") -> Row:
        return Row(label, [cell(one) for one in both], hint)

    limit = f"limit {milliseconds(limit_seconds)} ms" if limit_seconds is not None else ""
    p99 = [_p99(calls[0], None, ""), _p99(calls[1], limit_seconds, limit)]
    return [
        Row("calls", [Cell(rate(one.calls_per_second), "/s") for one in calls], "over the last 10 seconds"),
        *_operations(calls),
        Row("faults", [_faults(one) for one in calls], "calls that failed by the store's fault, in half a minute"),
        Row("p50", [Cell(milliseconds(_known(one, "p50_seconds")), "ms") for one in calls], "median latency"),
        Row("p99", p99, "latency that 99 of 100 calls stay below"),
        row("records", lambda one: Cell(count(_known(one, "records")))),
        row("owned", lambda one: Cell(count(_known(one, "owned_records"))), "records that the store may change"),
        row("outbox", _outbox, "events that the log does not have yet"),
        row("lag", _lag, "events of the other store that this one has not applied yet"),
        row("parked", _parked, "events that the store could not apply"),
        row("pool", _pool, "database connections of the store's process that answered"),
        row(
            "waiting",
            lambda one: Cell(count(one.waiting), tone="warn" if one.waiting else ""),
            "calls that wait for the store",
        ),
    ]


def _operations(calls: tuple[pb.MeasuredCalls, pb.MeasuredCalls]) -> list[Row]:
    rates = [{one.operation: one.calls_per_second for one in side.operations} for side in calls]
    names = sorted({*rates[0], *rates[1]}, key=lambda name: (-sum(side.get(name, 0.0) for side in rates), name))
    return [Row(name, [Cell(rate(side.get(name, 0.0)), "/s") for side in rates], is_part=True) for name in names]


def _faults(calls: pb.MeasuredCalls) -> Cell:
    note = share(calls.recent_faults, calls.recent_calls)
    return Cell(count(calls.recent_faults), note=note, tone="bad" if calls.recent_faults else "")


def _p99(calls: pb.MeasuredCalls, limit_seconds: float | None, note: str) -> Cell:
    value = _known(calls, "p99_seconds")
    is_over = value is not None and limit_seconds is not None and value > limit_seconds
    return Cell(milliseconds(value), "ms", note, "warn" if is_over else "")


def _outbox(status: pb.StoreStatus) -> Cell:
    entries = _known(status, "outbox_entries")
    note = f"oldest {duration(status.outbox_oldest_seconds)}" if entries else ""
    return Cell(count(entries), note=f"{status.set_aside} set aside" if status.set_aside else note)


def _pool(status: pb.StoreStatus) -> Cell:
    size = _known(status, "pool_size")
    if size is None:
        return Cell(NOT_KNOWN)
    waits = f", {count(status.pool_waiting)} wait" if status.pool_waiting else ""
    return Cell(count(status.pool_in_use), note=f"of {count(size)}{waits}", tone="warn" if waits else "")


def _lag(status: pb.StoreStatus) -> Cell:
    events = _known(status, "lag_events")
    if events is None:
        return Cell(NOT_KNOWN)
    note = duration(status.lag_seconds) if events and status.HasField("lag_seconds") else ""
    return Cell(count(events), note=status.feed_trouble or note, tone="bad" if status.feed_trouble else "")


def _parked(status: pb.StoreStatus) -> Cell:
    parked = _known(status, "parked")
    return Cell(count(parked), tone="bad" if parked else "")


def _limit(calls_of_a: pb.MeasuredCalls, limits: Mapping[str, float] | None) -> float | None:
    """P99 that B must stay below to count as equal to A; None without a measurement of A."""
    p99 = _known(calls_of_a, "p99_seconds")
    if p99 is None or limits is None:
        return None
    return float(p99 * (1 + limits.get(LATENCY_MARGIN.name, LATENCY_MARGIN.default) / 100))


def _meter(calls: pb.MeasuredCalls, limit_seconds: float | None) -> Meter | None:
    value = _known(calls, "p99_seconds")
    if value is None or not limit_seconds:
        return None
    full = 1.5 * max(limit_seconds, min(value, 3 * limit_seconds))
    return Meter(min(100.0, 100 * value / full), 100 * limit_seconds / full, value > limit_seconds)


def spark(calls: Sequence[int], faults: Sequence[int]) -> Spark:
    """`calls`, `faults`: per period, oldest first."""
    shown, failed = list(calls)[-PERIODS:], list(faults)[-PERIODS:]
    if not shown:
        return Spark("", (), "no measurements yet")
    most = max(*shown, 1)
    start = SPARK_WIDTH - len(shown)

    def height(value: int) -> float:
        return round(SPARK_HEIGHT * value / most, 1)

    points = " ".join(f"{start + x},{round(SPARK_HEIGHT - height(y), 1)}" for x, y in enumerate(shown))
    bars = [(start + x, round(SPARK_HEIGHT - height(y), 1), height(y)) for x, y in enumerate(failed) if y]
    rates = [value / PERIOD_SECONDS for value in shown]
    label = (
        f"calls per second over {duration(len(shown) * PERIOD_SECONDS)}: {rate(min(rates))} to {rate(max(rates))},"
        f" now {rate(rates[-1])}; {sum(failed)} faults"
    )
    return Spark(points, bars, label)


def _known(message: Any, name: str) -> Any:
    """The value of an optional field; None if it is absent."""
    return getattr(message, name) if message.HasField(name) else None

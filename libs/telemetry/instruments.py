"""Instruments made from rows of the table of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from libs.telemetry.metric import Kind
from libs.telemetry.table import TABLE


class Reading(NamedTuple):
    value: float
    labels: Mapping[str, str] = {}


def observe(meter: Meter, name: str, read: Callable[[], Iterable[Reading]]) -> None:
    """Export the readings of a gauge, or of a counter since the start. An unknown value has no reading. Raises KeyError
    for a name that is not in the table."""
    metric = TABLE[name]

    def observed(_: CallbackOptions) -> list[Observation]:
        # OTLP takes no boolean.
        return [Observation(float(value), labels) for value, labels in read()]

    make = meter.create_observable_counter if metric.kind is Kind.COUNTER else meter.create_observable_gauge
    make(metric.name, [observed], metric.unit, metric.meaning)


def observe_one(meter: Meter, name: str, read: Callable[[], float | None]) -> None:
    """Like `observe`, for a metric without labels. None: unknown."""
    observe(meter, name, lambda: [Reading(value)] if (value := read()) is not None else [])


def histogram(meter: Meter, name: str) -> Histogram:
    """Raises KeyError."""
    metric = TABLE[name]
    return meter.create_histogram(
        metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.edges
    )

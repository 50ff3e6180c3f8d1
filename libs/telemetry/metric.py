"""The parts of the table of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    """OpenTelemetry's name, with dots."""
    kind: Kind
    unit: str
    """UCUM: "s", "By", "1" for a share, "{call}" for a number of calls; "" for 1 or 0."""
    meaning: str
    labels: tuple[str, ...] = ()
    """Labels, as Prometheus reads them."""
    edges: tuple[float, ...] = ()
    """Bucket edges of a histogram."""
    optional: bool = False
    """A sample exists only under the condition that `meaning` names."""

    @property
    def exported(self) -> str:
        """Name that Prometheus reads; of a histogram, without `_bucket`, `_sum` and `_count`."""
        total = "_total" if self.kind is Kind.COUNTER else ""
        return f"{self.name.replace('.', '_')}{_SUFFIXES.get(self.unit, '')}{total}"


class Group(NamedTuple):
    title: str
    programs: tuple[str, ...]
    """The programs whose processes export the group."""
    metrics: tuple[Metric, ...]


def gauge(name: str, unit: str, meaning: str, *labels: str, optional: bool = False) -> Metric:
    return Metric(name, Kind.GAUGE, unit, meaning, labels, optional=optional)


def counter(name: str, unit: str, meaning: str, *labels: str, optional: bool = False) -> Metric:
    return Metric(name, Kind.COUNTER, unit, meaning, labels, optional=optional)


def histogram(name: str, edges: tuple[float, ...], meaning: str, *labels: str, optional: bool = False) -> Metric:
    return Metric(name, Kind.HISTOGRAM, "s", meaning, labels, edges, optional)

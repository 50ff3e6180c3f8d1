"""Thresholds: numbers that operators may set. Each is declared once, with its unit, default, range and meaning. Pure.

A gate declares its thresholds beside its verdict (`core.gates`), automatic rollback declares its own. From such a
declaration come:

* the router's setting of that name (`RouterSettings`), with its range;
* the limit of that name, which `baton gates` lists and changes while the migration runs (`core.limits`);
* the text of a gate's requirement, and the numbers in `deploy/alerts.yaml`.

Operators type a value in the threshold's unit: percent, milliseconds, days. Code reads it as `limits[THRESHOLD]`, in
seconds or as a share of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Generic, TypeVar

from libs.errors import InvalidField
from libs.text import plain

N = TypeVar("N", bound=float)
N_co = TypeVar("N_co", bound=float, covariant=True)
DAY_SECONDS = 86_400
_MANY = 100_000_000
_SMALLEST = 0.000001


class Unit(Enum):
    """Unit of typed values: its suffix, and its size in seconds or as a share of 1."""

    COUNT = ("", Fraction(1))
    PERCENT = (" %", Fraction(1, 100))
    MILLISECONDS = (" ms", Fraction(1, 1000))
    SECONDS = (" s", Fraction(1))
    DAYS = (" days", Fraction(DAY_SECONDS))


@dataclass(frozen=True, slots=True)
class Threshold(Generic[N_co]):
    name: str
    """The name of the setting: gate_lag_seconds."""
    unit: Unit
    default: N_co
    least: float
    most: float
    meaning: str
    """The limited quantity, in one sentence with its unit."""

    @property
    def kind(self) -> type[N_co]:
        """int for a count, bool for a switch, else float."""
        return type(self.default)

    @property
    def is_whole(self) -> bool:
        return issubclass(self.kind, int)

    def check(self, typed: float) -> float:
        """Returns `typed`. Raises InvalidField if it is out of range."""
        inside = math.isfinite(typed) and self.least <= typed <= self.most
        if not inside or (self.is_whole and typed != int(typed)):
            kind = "a whole number from" if self.is_whole else "a number from"
            raise InvalidField(self.name, plain(typed), f"{kind} {plain(self.least)} to {plain(self.most)}")
        return typed

    def value(self, typed: float) -> N_co:
        """Converts from the threshold's unit to seconds or a share of 1."""
        _, size = self.unit.value
        return self.kind(typed * size.numerator / size.denominator)

    def shown(self, typed: float) -> str:
        suffix, _ = self.unit.value
        return f"{plain(typed)}{suffix.rstrip('s') if self.unit is Unit.DAYS and typed == 1 else suffix}"


def count(name: str, default: int, meaning: str, *, least: int = 1, most: int = _MANY) -> Threshold[int]:
    return Threshold(name, Unit.COUNT, default, least, most, meaning)


def switch(name: str, default: bool, meaning: str) -> Threshold[bool]:
    return Threshold(name, Unit.COUNT, default, 0, 1, meaning)


def percent(name: str, default: float, meaning: str, *, most: float = 100.0) -> Threshold[float]:
    return Threshold(name, Unit.PERCENT, float(default), _SMALLEST, most, meaning)


def milliseconds(name: str, default: float, meaning: str) -> Threshold[float]:
    return Threshold(name, Unit.MILLISECONDS, float(default), 0.001, 60_000.0, meaning)


def seconds(name: str, default: float, meaning: str, *, least: float = 0.001, most: float = 3600.0) -> Threshold[float]:
    return Threshold(name, Unit.SECONDS, float(default), least, most, meaning)


def days(name: str, default: float, meaning: str) -> Threshold[float]:
    return Threshold(name, Unit.DAYS, float(default), _SMALLEST, 365.0, meaning)


Overlay = tuple[tuple[str, float], ...]
"""Limits that the migration sets (`Setting.limits`): names and typed values, ordered by name."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The value of every threshold: the one that was typed, or the threshold's default."""

    typed_values: Mapping[str, float] = field(default_factory=dict)
    """Typed values by name. An unknown name, of a newer release, has no effect."""

    def __getitem__(self, threshold: Threshold[N]) -> N:
        """Return the value in seconds or as a share of 1."""
        return threshold.value(self.typed(threshold))

    def typed(self, threshold: Threshold[N]) -> float:
        """Return the value in the threshold's unit."""
        return self.typed_values.get(threshold.name, float(threshold.default))

    def overlaid(self, overlay: Overlay) -> Limits:
        """Return these limits, replaced by the overlay where it has a value."""
        return Limits({**self.typed_values, **dict(overlay)})

    def shown(self, thresholds: Iterable[Threshold[float]]) -> dict[str, str]:
        """Text by name, with units: {"gate_lag_seconds": "300 s"}."""
        return {threshold.name: threshold.shown(self.typed(threshold)) for threshold in thresholds}

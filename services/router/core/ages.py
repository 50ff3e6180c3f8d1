"""How far two stores' records are apart in time, by the write times in the records. Pure.

For each record that both stores have: the difference between the write times of the two rows. Equal rows count as 0.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from libs.telemetry.latency import P99, bucket_edges, bucket_of_seconds
from services.router.core.differences import Pair


@dataclass(slots=True)
class Behind:
    """The lag of one store behind the other."""

    records: int = 0
    total_seconds: float = 0.0
    worst_seconds: float = 0.0
    worst: str = ""
    """Key of that record."""
    ages: Counter[int] = field(default_factory=Counter)
    """Number of records by latency bucket."""

    def add(self, key: str, seconds: float) -> None:
        self.records += 1
        self.total_seconds += seconds
        self.ages[bucket_of_seconds(seconds)] += 1
        if seconds > self.worst_seconds:
            self.worst_seconds, self.worst = seconds, key

    def p99_seconds(self, records: int) -> float:
        """P99 over `records`, up to 4.4 % too high. Records without an age have no lag."""
        above = records - records * P99
        for bucket in sorted(self.ages, reverse=True):
            if self.ages[bucket] > above:
                return min(bucket_edges(bucket)[1], self.worst_seconds)
            above -= self.ages[bucket]
        return 0.0


@dataclass(slots=True)
class Validation:
    """The result of the queries so far."""

    records_a: int = 0
    records_b: int = 0
    only_in_a: int = 0
    only_in_b: int = 0
    different: int = 0
    """Records whose two rows differ."""
    unknown: int = 0
    """Differing records without a write time."""
    b_behind: Behind = field(default_factory=Behind)
    a_behind: Behind = field(default_factory=Behind)

    @property
    def in_both(self) -> int:
        # The count and the rows are of different moments.
        return max(0, self.records_a - self.only_in_a)

    def add(self, key: str, pair: Pair) -> None:
        a, b = pair
        if a is None or b is None:
            self.only_in_a += b is None
            self.only_in_b += a is None
            return
        if a._replace(digest=0) == b._replace(digest=0):
            return
        self.different += 1
        if a.written_seconds is None or b.written_seconds is None:
            self.unknown += 1
        elif a.written_seconds > b.written_seconds:
            self.b_behind.add(key, a.written_seconds - b.written_seconds)
        elif b.written_seconds > a.written_seconds:
            self.a_behind.add(key, b.written_seconds - a.written_seconds)

    def to_json(self) -> str:
        """The report, from which a validation can continue."""
        value = {name: getattr(self, name) for name in _COUNTS}
        value |= {"in_both": self.in_both, "average_seconds": self._mean(self.a_behind) - self._mean(self.b_behind)}
        value |= {name: self._shown(getattr(self, name)) for name in _BEHIND}
        return json.dumps(value, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Validation:
        if not text:
            return cls()
        value = json.loads(text)
        counts = {name: value[name] for name in _COUNTS}
        return cls(**counts, b_behind=_read(value["b_behind"]), a_behind=_read(value["a_behind"]))

    def _mean(self, behind: Behind) -> float:
        return behind.total_seconds / self.in_both if self.in_both else 0.0

    def _shown(self, behind: Behind) -> dict[str, Any]:
        return {
            "records": behind.records,
            "average_seconds": self._mean(behind),
            "p99_seconds": behind.p99_seconds(self.in_both),
            "worst_seconds": behind.worst_seconds,
            "worst": behind.worst,
            "total_seconds": behind.total_seconds,
            "ages": sorted(behind.ages.items()),
        }


_COUNTS = ("records_a", "records_b", "only_in_a", "only_in_b", "different", "unknown")
_BEHIND = ("b_behind", "a_behind")


def _read(shown: dict[str, Any]) -> Behind:
    ages = Counter(dict(shown["ages"]))
    return Behind(shown["records"], shown["total_seconds"], shown["worst_seconds"], shown["worst"], ages)

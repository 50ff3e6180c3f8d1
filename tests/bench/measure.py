"""Figures, and how they are taken: in turns, by medians, with what else kept the machine busy."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from libs.proving.servers import tree

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure, or its ratio to the baseline, should be."""

    limit: float
    at_most: bool = True
    of_ratio: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.limit:.0%} of it" if self.of_ratio else f"{sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value beside its baseline's."""

    name: str
    unit: str
    value: float
    baseline: float
    baseline_name: str
    target: Target | None = None

    @property
    def ratio(self) -> float:
        return self.value / self.baseline if self.baseline else math.nan

    @property
    def met(self) -> bool | None:
        """None: there is no target."""
        if self.target is None:
            return None
        found = self.ratio if self.target.of_ratio else self.value
        return found <= self.target.limit if self.target.at_most else found >= self.target.limit

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "value": round(self.value, 4),
            "baseline": round(self.baseline, 4),
            "baseline_name": self.baseline_name,
            "ratio": None if math.isnan(self.ratio) else round(self.ratio, 4),
            "target": str(self.target) if self.target else None,
            "met": self.met,
        }


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of them does not exceed. NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)] if ordered else math.nan


@dataclass(slots=True)
class Round:
    """One turn of one contender."""

    seconds: float
    milliseconds: list[float] = field(default_factory=list)
    """Of each call."""
    cpu: Mapping[str, float] = field(default_factory=dict)
    """Seconds by process."""

    @property
    def p50(self) -> float:
        return percentile(self.milliseconds, 0.5)

    @property
    def per_second(self) -> float:
        return len(self.milliseconds) / self.seconds


@dataclass(slots=True)
class Rounds:
    """All turns of one contender, in the order of the other contenders' turns."""

    rounds: list[Round] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(one.p50 for one in self.rounds)

    @property
    def p99(self) -> float:
        return percentile((value for one in self.rounds for value in one.milliseconds), 0.99)

    @property
    def per_second(self) -> float:
        return statistics.median(one.per_second for one in self.rounds)

    def cpu_milliseconds(self, process: str) -> float:
        """Of one call."""
        calls = sum(len(one.milliseconds) for one in self.rounds)
        return 1000 * sum(one.cpu.get(process, 0.0) for one in self.rounds) / calls

    def added_p50(self, to: Rounds) -> float:
        """By how much a call takes longer than `to`'s in the same turn."""
        return statistics.median(mine.p50 - other.p50 for mine, other in zip(self.rounds, to.rounds, strict=True))


Contender = Callable[[int], Awaitable[Round]]
"""Takes the number of the turn."""


async def alternate(turns: int, contenders: Mapping[str, Contender], *, rotate: bool = True) -> dict[str, Rounds]:
    """A B C, B C A, C A B, ... after one turn of each that is not counted. Without `rotate`: A B C, A B C, ..."""
    found = {name: Rounds() for name in contenders}
    names = list(contenders)
    for name in names:
        await contenders[name](0)
    for turn in range(1, turns + 1):
        first = turn % len(names) if rotate else 0
        for name in names[first:] + names[:first]:
            found[name].rounds.append(await contenders[name](turn))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all its threads."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Meter:
    """CPU time of some processes between `start` and `stop`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._before = self._read()
        self._began = time.perf_counter()

    def stop(self, milliseconds: Sequence[float]) -> Round:
        seconds = time.perf_counter() - self._began
        after = self._read()
        return Round(seconds, list(milliseconds), {name: after[name] - self._before[name] for name in self._pids})

    def _read(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process, in MB of 2**20 bytes. PSS counts what is shared by its share."""

    rss: float
    pss: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        sizes = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            sizes[name] = int(size) / 1024
        return cls(sizes["Rss:"], sizes["Pss:"])


class Machine:
    """What kept the machine busy since this was made: our processes, and everybody else's."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()[0]
        self._began = time.monotonic()
        self._before = _busy(), _ours()

    def as_json(self) -> dict[str, float]:
        seconds = time.monotonic() - self._began
        busy, ours = _busy(), _ours()
        all_cores = seconds * (os.cpu_count() or 1)
        # What ended meanwhile is nobody's: with a process of ours that ended, its time counts as others'.
        others = (busy - self._before[0]) - (ours - self._before[1])
        return {
            "seconds": round(seconds, 1),
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "cpu_of_others": round(min(max(others / all_cores, 0.0), 1.0), 3),
        }


def _busy() -> float:
    """Seconds that all cores together were not idle."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _ours() -> float:
    total = 0.0
    for pid in (os.getpid(), *(process.pid for process in tree.descendants(os.getpid()))):
        try:
            total += cpu_seconds(pid)
        except OSError:
            continue
    return total

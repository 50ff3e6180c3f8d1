"""Figures and their measurement: alternating rounds, medians, and the load by other processes."""

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
_SCHEDULER_TIME = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The limit for a figure or for its ratio to the baseline."""

    limit: float
    at_most: bool = True
    of_ratio: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.limit:.0%} of it" if self.of_ratio else f"{sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and its baseline."""

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
        """Whether the target is met; None if there is no target."""
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
    """The smallest value that this share of the values does not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)] if ordered else math.nan


@dataclass(slots=True)
class Round:
    """One round of one contender."""

    seconds: float
    milliseconds: list[float] = field(default_factory=list)
    """Milliseconds per call."""
    cpu: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds by process."""

    @property
    def p50(self) -> float:
        return percentile(self.milliseconds, 0.5)

    @property
    def per_second(self) -> float:
        return len(self.milliseconds) / self.seconds


@dataclass(slots=True)
class Rounds:
    """All rounds of one contender, in the order of the other contenders' rounds."""

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
        """CPU time of a process per call."""
        calls = sum(len(one.milliseconds) for one in self.rounds)
        return 1000 * sum(one.cpu.get(process, 0.0) for one in self.rounds) / calls

    def cpu_above(self, idle: Rounds, process: str) -> float:
        """CPU milliseconds of a process per call, without what it uses in the same time when there are no calls: the
        median over the rounds, since other programs disturb some of them."""
        at_rest = sum(one.cpu[process] for one in idle.rounds) / sum(one.seconds for one in idle.rounds)
        return statistics.median(
            1000 * (one.cpu[process] - at_rest * one.seconds) / len(one.milliseconds) for one in self.rounds
        )

    def added_p50(self, to: Rounds) -> float:
        """Median over the rounds of the difference between the two P50s."""
        return statistics.median(mine.p50 - other.p50 for mine, other in zip(self.rounds, to.rounds, strict=True))


Contender = Callable[[int], Awaitable[Round]]
"""Runs one round; its argument is the number of the round."""


async def alternate(rounds: int, contenders: Mapping[str, Contender], *, rotate: bool = True) -> dict[str, Rounds]:
    """Run the contenders in the order A B C, B C A, C A B, and so on, or always A B C without `rotate`. The first round
    of each does not count."""
    found = {name: Rounds() for name in contenders}
    names = list(contenders)
    for name in names:
        await contenders[name](0)
    for number in range(1, rounds + 1):
        first = number % len(names) if rotate else 0
        for name in names[first:] + names[:first]:
            found[name].rounds.append(await contenders[name](number))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far. /proc has it only in steps of 10 ms."""
    # The id of the process's CPU clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | _SCHEDULER_TIME)


class Meter:
    """CPU time of some processes, from the making of this object to `stop`."""

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
    """Memory of a process, in MB of 2**20 bytes. PSS counts shared pages in proportion."""

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
    """The machine's load since the making of this object, by the bench's processes and by others."""

    def __init__(self) -> None:
        self.load_before = os.getloadavg()[0]
        self._began = time.monotonic()
        self._before = _busy(), _ours()

    def as_json(self) -> dict[str, float]:
        seconds = time.monotonic() - self._began
        busy, ours = _busy(), _ours()
        all_cores = seconds * (os.cpu_count() or 1)
        # The time of a process of the bench that has ended counts as others'.
        others = (busy - self._before[0]) - (ours - self._before[1])
        return {
            "seconds": round(seconds, 1),
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "cpu_of_others": round(min(max(others / all_cores, 0.0), 1.0), 3),
        }


def _busy() -> float:
    """Busy seconds, summed over all cores."""
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

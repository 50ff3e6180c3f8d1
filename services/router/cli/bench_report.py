"""The report of `baton bench pool`: a chart, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from libs.proving.pools.curve import ENOUGH, Point, knee
from libs.proving.pools.sweep import Server
from libs.store.connections import REMEDY, Connections, per_process
from services.router.cli.views import View

_WIDTH = 28
_EIGHTHS = " ▏▎▍▌▋▊▉█"
BUSY = 0.9
"""Share of one core above which the measuring process itself is the bottleneck."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    server: Server
    points: Sequence[Point]
    rule: int | None
    """The size by the rule 2 × cores + 1; None if the database's cores are not known."""
    processes: int

    @property
    def knee(self) -> Point:
        return knee(self.points)

    @property
    def best(self) -> Point:
        return max(self.points, key=lambda point: point.calls_per_second)

    @property
    def connections(self) -> Connections:
        """The connections of all processes if each has a pool of the knee's size."""
        return Connections(per_process(self.knee.size), self.processes, self.server.allowed)

    @property
    def note(self) -> str:
        """A caveat about the curve; "" if there is none."""
        if self.best.busy >= BUSY:
            return (
                f"the measuring process used {self.best.busy:.0%} of a core at its best: the knee is that of one"
                " process, not of the database; several processes reach more together"
            )
        if self.knee.size == self.points[-1].size:
            return "the curve has not bent yet: measure larger sizes with --sizes"
        return ""

    def as_dict(self) -> View:
        return {
            "server": self.server.version,
            "database": self.server.database,
            "allowed": self.server.allowed,
            "in_use": self.server.in_use,
            "rule": self.rule,
            "knee": self.knee.size,
            "best": self.best.size,
            "note": self.note,
            "points": [{name: round(value, 3) for name, value in asdict(point).items()} for point in self.points],
            "connections": {**self.connections._asdict(), "fits": self.connections.fits},
        }

    def screen(self) -> RenderableType:
        return Group(self._chart(), "", *(Text(line) for line in self._lines()))

    def _chart(self) -> Table:
        fastest, slowest = self.best.calls_per_second, max(point.p99_ms for point in self.points)
        table = Table(box=None, pad_edge=False)
        for title in ("pool", "calls/s"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("p99 ms", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("", no_wrap=True)
        for point in self.points:
            marks = {"knee": self.knee.size, "2 × cores + 1": self.rule}
            table.add_row(
                str(point.size),
                f"{point.calls_per_second:,.0f}",
                Text(bar(point.calls_per_second / fastest), style="green"),
                f"{point.p99_ms:.1f}",
                Text(bar(point.p99_ms / slowest), style="yellow"),
                ", ".join(name for name, size in marks.items() if size == point.size),
            )
        return table

    def _lines(self) -> list[str]:
        found, best = self.knee, self.best
        share = found.calls_per_second / best.calls_per_second
        most = f"{best.calls_per_second:,.0f} calls/s with {best.size}"
        lines = [
            f"knee: {found.size} connections give {share:.0%} of the most ({most}), p99 {found.p99_ms:.1f} ms;"
            f" {ENOUGH:.0%} is enough"
        ]
        if (by_rule := next((point for point in self.points if point.size == self.rule), None)) is not None:
            share = by_rule.calls_per_second / best.calls_per_second
            lines.append(f"rule: 2 × cores + 1 = {self.rule} gives {share:.0%}, p99 {by_rule.p99_ms:.1f} ms")
        verdict = "fits" if self.connections.fits else f"doctor would warn: {REMEDY}"
        lines.append(f"request_pool = {found.size}: {self.connections}: {verdict}")
        if self.note:
            lines.append(f"note: {self.note}")
        return lines


def bar(share: float) -> str:
    """Draw a bar in eighths of a character. A share above 0 gets at least one eighth."""
    eighths = max(round(min(share, 1.0) * _WIDTH * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()

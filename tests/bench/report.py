"""The report of a run, as a table and as JSON."""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Figure

BUSY_SHARE = 0.25
"""Share of the cores used by other processes, from which a bench counts as disturbed."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one bench. `error`: the reason why it could not be measured."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def disturbed(self) -> bool:
        return self.machine.get("cpu_of_others", 0.0) >= BUSY_SHARE

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "figures": [figure.as_json() for figure in self.figures],
            "machine": self.machine,
            "disturbed": self.disturbed,
            "error": self.error,
        }


def as_json(results: list[Result], *, quick: bool, cores: int) -> str:
    figures = [figure for result in results for figure in result.figures]
    report = {
        "quick": quick,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": cores,
        "targets_met": sum(figure.met is True for figure in figures),
        "targets_missed": [figure.name for figure in figures if figure.met is False],
        "benches": [result.as_json() for result in results],
    }
    return json.dumps(report, indent=2) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def show(console: Console, results: list[Result]) -> None:
    for result in results:
        table = Table(title=f"{result.name}: {result.title}", title_justify="left", title_style="bold")
        table.add_column("figure", overflow="fold")
        for column in ("measured", "baseline", "ratio", "target"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("baseline is")
        for figure in result.figures:
            table.add_row(*_row(figure))
        console.print(table)
        console.print(f"[dim]{_conditions(result)}[/dim]\n")
        if result.error:
            console.print(f"[red]not measured: {result.error}[/red]\n")


def _row(figure: Figure) -> tuple[str, ...]:
    met = {None: "", True: " [green]met[/green]", False: " [red]missed[/red]"}[figure.met]
    ratio = "" if math.isnan(figure.ratio) else f"{figure.ratio:.2f}"
    return (
        figure.name,
        f"{_number(figure.value)} {figure.unit}",
        _number(figure.baseline),
        ratio,
        f"{figure.target or ''}{met}",
        figure.baseline_name,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _conditions(result: Result) -> str:
    machine = result.machine
    if not machine:
        return ""
    text = (
        f"{machine['seconds']:.0f} s, load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after,"
        f" others used {machine['cpu_of_others']:.0%} of the cores"
    )
    return f"{text}: disturbed, use only the ratios, or measure again" if result.disturbed else text

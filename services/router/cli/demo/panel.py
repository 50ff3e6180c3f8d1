"""The live panel of a demo: the phases, the two stores side by side, the clients, and the current step.

Colour alone carries no meaning: phases and stores have words and signs, and the bar of the buckets has two textures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.router.cli.demo.glance import Glance, StoreGlance
from services.router.core.phase import Phase

COLUMNS = 100
"""Width of the panel; less at a narrower terminal."""
NARROWEST = 60
SAMPLES = 28
"""Glances of a sparkline."""
STORES = {"A": ("simple_mcp (old)", "cyan"), "B": ("service_layer (new)", "magenta")}
_TEXTURES = {"A": "█", "B": "▒"}
_LEVELS = "▁▂▃▄▅▆▇█"
_QUIET = "grey62"
_UNKNOWN = StoreGlance("away", 0.0, 0.0, 0, 0, None)


def panel(glances: Sequence[Glance], sentence: str, bar: str, width: int) -> RenderableType:
    """The panel for the last of the glances. The others are the history of its sparklines."""
    width = max(NARROWEST, min(width, COLUMNS))
    now = glances[-1]
    half = (width - 2) // 2
    stores = Table.grid(padding=(0, 1, 0, 0))
    stores.add_row(*(_store(name, glances, half) for name in STORES))
    return Group(
        Text(""),
        rail(now.phase, hold=now.hold, width=width),
        stores,
        _buckets(now, width),
        _clients(glances),
        Text(""),
        Text.assemble(("▶ ", "bold green"), (sentence, "bold")),
        Text(f"  {bar}" if bar else "", style=_QUIET),
    )


def rail(phase: str, *, hold: bool, width: int) -> Text:
    """All phases in a row: those behind with ✓, the current one with ●, those ahead with ○.

    `phase`: the name of the current one; the share of the canary may follow."""
    names = [one.value for one in Phase]
    shown = phase.split(",")[0]
    current = next((number for number, name in enumerate(names) if name == shown.split(" ")[0]), -1)
    gap = " ─ " if width >= COLUMNS and not hold else " "
    text = Text(" ")
    for number, name in enumerate(names):
        if number:
            text.append(gap, _QUIET)
        if number == current:
            text.append(f"● {shown}", "bold reverse green")
        elif number < current:
            text.append(f"✓ {name}", "green")
        else:
            text.append(f"○ {name}", _QUIET)
    if hold:
        text.append(" ‖ held at A", "bold yellow")
    return text


def share_bar(of_a: int, of_b: int, cells: int) -> Text:
    """A bar that the two stores share. A store that has anything has at least one cell."""
    total = of_a + of_b
    if not total:
        return Text("·" * cells, style=_QUIET)
    full = round(cells * of_a / total)
    full = min(max(full, 1 if of_a else 0), cells - 1 if of_b else cells)
    return Text.assemble(
        (_TEXTURES["A"] * full, STORES["A"][1]),
        (_TEXTURES["B"] * (cells - full), STORES["B"][1]),
    )


def sparkline(values: Iterable[float], top: float) -> str:
    """One sign for each value, from nothing to `top`."""
    last = len(_LEVELS) - 1
    return "".join(_LEVELS[min(last, round(last * value / top))] if top > 0 else _LEVELS[0] for value in values)


def _store(name: str, glances: Sequence[Glance], width: int) -> Panel:
    title, colour = STORES[name]
    seen = [glance.stores.get(name, _UNKNOWN) for glance in glances]
    now = seen[-1]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=_QUIET)
    table.add_column(justify="right", min_width=6, no_wrap=True)
    table.add_column(style=colour, no_wrap=True)
    cells = min(SAMPLES, max(8, width - 25))
    for label, rate in (("reads/s", _reads), ("writes/s", _writes)):
        # One scale for both stores, so that their lines can be compared.
        top = max((rate(store) for glance in glances for store in glance.stores.values()), default=0.0)
        table.add_row(label, f"{rate(now):.0f}", sparkline([rate(one) for one in seen[-cells:]], top))
    table.add_row("records", str(now.records), "")
    table.add_row("lag", now.lag, "")
    serves = now.state == "serves"
    state = Text(f"✓ {now.state}", "green") if serves else Text(f"✗ {now.state}", "bold red")
    head = Text.assemble((f"{name} ", f"bold {colour}"), title, "  ", state)
    return Panel(table, title=head, title_align="left", box=box.ROUNDED, width=width, border_style=colour)


def _reads(store: StoreGlance) -> float:
    return store.reads


def _writes(store: StoreGlance) -> float:
    return store.writes


def _buckets(now: Glance, width: int) -> Text:
    of_a, of_b = (now.stores.get(name, _UNKNOWN).buckets for name in STORES)
    line = Text.assemble(("  buckets ", _QUIET), (f"A {of_a:4} ", "bold"))
    line.append_text(share_bar(of_a, of_b, width - 29))
    line.append(f" {of_b:<4} B", "bold")
    return line


def _clients(glances: Sequence[Glance]) -> Group:
    now = glances[-1]
    rates = [glance.calls_per_second for glance in glances[-SAMPLES:]]
    speed = Text.assemble(
        ("  clients ", _QUIET),
        (f"{now.calls_per_second:3.0f} calls/s ", "bold"),
        sparkline(rates, max(rates, default=0.0)),
        *_figures(("p50", f"{now.p50:.0f} ms"), ("p99", f"{now.p99:.0f} ms")),
    )
    counts = Text.assemble(
        ("  so far", _QUIET),
        *_figures(
            ("writes acknowledged", str(now.acknowledged)),
            ("handoffs", str(now.handoffs)),
            ("stale reads", str(now.stale_reads)),
            ("errors", str(now.errors)),
        ),
    )
    return Group(speed, counts)


def _figures(*figures: tuple[str, str]) -> Iterable[tuple[str, str]]:
    for label, figure in figures:
        yield f"   {label} ", _QUIET
        yield figure, "bold"

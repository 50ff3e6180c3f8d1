"""The display of a running demo: a live table at a terminal, else a line every second."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.proving.trial.load import Load
from libs.proving.trial.walk import Walk, pb_store, phase_name

GLANCE_SECONDS = 0.5
LINE_SECONDS = 1.0
_REFRESHES_PER_SECOND = 4
BAR_CELLS = 30


@dataclass(frozen=True, slots=True)
class StoreGlance:
    """A store's state as the router sees it. Rates are answered client calls per second."""

    state: str
    reads: float
    writes: float
    records: int
    buckets: int
    lag_seconds: float | None

    @property
    def lag(self) -> str:
        return "?" if self.lag_seconds is None else f"{self.lag_seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Glance:
    """The system's state at one moment."""

    seconds: float
    phase: str
    stores: dict[str, StoreGlance]
    calls_per_second: float
    handoffs: int
    stale_reads: int
    errors: int


@dataclass(slots=True)
class Meter:
    """A maker of glances. Rates are differences from the previous glance."""

    load: Load
    _before: tuple[float, dict[str, tuple[int, int]], int] | None = None

    def glance(self, status: pb.GetStatusResponse) -> Glance:
        now = time.monotonic()
        counts = {pb_store(store): (store.reads, store.writes) for store in status.stores}
        since, before, attempts = self._before or (now, counts, self.load.stats.attempts)
        passed = max(now - since, 0.001)
        self._before = (now, counts, self.load.stats.attempts)
        stores = {}
        for store in status.stores:
            name = pb_store(store)
            reads, writes = before.get(name, (0, 0))
            stores[name] = StoreGlance(
                state="serves" if store.serving else "away",
                reads=max(0.0, (store.reads - reads) / passed),
                writes=max(0.0, (store.writes - writes) / passed),
                records=store.owned_records,
                buckets=store.owned_buckets,
                lag_seconds=store.lag_seconds if store.HasField("lag_seconds") else None,
            )
        return Glance(
            seconds=now - self.load.started,
            phase=phase_name(status.setting),
            stores=stores,
            calls_per_second=(self.load.stats.attempts - attempts) / passed,
            handoffs=status.handoffs,
            stale_reads=self.load.stats.stale_reads,
            errors=self.load.stats.errors.total(),
        )


@dataclass(slots=True)
class Screen:
    """The demo's output. ``stream`` is stderr if stdout is for JSON."""

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    sentence: str = ""
    """The current step."""
    bar: str = ""
    """The progress of the current step, if it has any."""
    glance: Glance | None = None
    _live: Live | None = None

    @property
    def is_terminal(self) -> bool:
        return self.stream.isatty()

    @property
    def console(self) -> Console:
        width = None if self.is_terminal else 160
        return Console(file=self.stream, width=width, highlight=False, markup=False, soft_wrap=not self.is_terminal)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Show the live table while the block runs, at a terminal."""
        if not self.is_terminal:
            yield
            return
        with Live(
            get_renderable=self._renderable, console=self.console, refresh_per_second=_REFRESHES_PER_SECOND
        ) as self._live:
            yield
        self._live = None

    def begin_step(self, sentence: str) -> None:
        self.sentence, self.bar = sentence, ""
        self.tell(f"> {sentence}")

    def tell(self, text: str) -> None:
        """Print an event. It stays on the screen."""
        if self._live is not None:
            self._live.console.print(text)
        else:
            print(text, file=self.stream, flush=True)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show a progress bar at the bottom until the next step begins."""
        full = BAR_CELLS * min(done, total) // total if total else 0
        self.bar = f"{name} {'█' * full}{'░' * (BAR_CELLS - full)} {done} of {total or '?'}"

    async def follow(self, walk: Walk, meter: Meter) -> None:
        """Update the display until cancelled."""
        last_line = time.monotonic()
        while True:
            self.glance = meter.glance(await walk.status())
            if not self.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
                last_line = time.monotonic()
                self.tell(line_of(self.glance, self.sentence))
            await asyncio.sleep(GLANCE_SECONDS)

    def _renderable(self) -> RenderableType:
        if self.glance is None:
            return Text(self.sentence)
        return Group(Text(""), table_of(self.glance), Text(self.sentence, style="bold"), Text(self.bar))


def line_of(glance: Glance, sentence: str) -> str:
    """Format a glance as one line."""
    calls = "  ".join(f"{name} {store.reads + store.writes:3.0f}/s" for name, store in glance.stores.items())
    owned = "  ".join(
        f"{name} {store.buckets} buckets {store.records} records lag {store.lag}"
        for name, store in glance.stores.items()
    )
    return (
        f"{glance.seconds:5.1f} s  {glance.phase:<17}  calls {calls}  owned {owned}  "
        f"handoffs {glance.handoffs}  errors {glance.errors}  | {sentence}"
    )


def table_of(glance: Glance) -> RenderableType:
    """Format a glance as a table."""
    head = Text(
        f"{glance.seconds:.0f} s   {glance.phase}   {glance.calls_per_second:.0f} calls/s   "
        f"{glance.handoffs} handoffs   {glance.stale_reads} reads marked stale   {glance.errors} errors"
    )
    table = _table("store", "state", "reads/s", "writes/s", "owned buckets", "owned records", "lag")
    for name, store in glance.stores.items():
        state = Text(store.state, style="" if store.state == "serves" else "red")
        figures = (f"{store.reads:.0f}", f"{store.writes:.0f}", str(store.buckets), str(store.records), store.lag)
        table.add_row(name, state, *figures)
    return Group(head, table)


def table_of_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    return table

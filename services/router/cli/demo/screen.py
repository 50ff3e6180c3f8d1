"""The display of a running demo: a live panel at a terminal, else a line every second."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from libs.proving.trial.walk import Walk
from services.router.cli.demo.glance import Glance, Meter
from services.router.cli.demo.panel import SAMPLES, panel

GLANCE_SECONDS = 0.5
LINE_SECONDS = 1.0
_REFRESHES_PER_SECOND = 4
BAR_CELLS = 30


@dataclass(slots=True)
class Screen:
    """The demo's output. ``stream`` is stderr if stdout is for JSON."""

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    sentence: str = ""
    """The current step."""
    bar: str = ""
    """The progress of the current step, if it has any."""
    glances: deque[Glance] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """The last ones. The newest is at the end."""
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
        """Show the live panel while the block runs, at a terminal."""
        if not self.is_terminal:
            yield
            return
        with Live(
            get_renderable=self.renderable, console=self.console, refresh_per_second=_REFRESHES_PER_SECOND
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
            glance = meter.glance(await walk.status())
            self.glances.append(glance)
            if not self.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
                last_line = time.monotonic()
                self.tell(line_of(glance, self.sentence))
            await asyncio.sleep(GLANCE_SECONDS)

    def renderable(self) -> RenderableType:
        """Return the panel, or before the first glance the current step."""
        if not self.glances:
            return Text(f"▶ {self.sentence}")
        return panel(list(self.glances), self.sentence, self.bar, self.console.width)


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


def table_of_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table

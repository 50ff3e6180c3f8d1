"""Records the screen of `baton demo` and draws the recording as an animated picture of a terminal.

python docs/picture.py record    # runs the demo, about a minute; writes docs/pictures/demo.json, then draws
python docs/picture.py           # draws docs/pictures/demo.svg from docs/pictures/demo.json
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from rich.console import Console
from rich.style import Style

from services.router.cli.demo import WORK
from services.router.cli.demo.panel import COLUMNS
from services.router.cli.demo.run import DemoPlan, run_demo
from services.router.cli.demo.screen import Screen

PICTURES = Path(__file__).parent / "pictures"
RECORDING = PICTURES / "demo.json"
PICTURE = PICTURES / "demo.svg"

ROWS = 28
CHARACTER = 7.25
"""Width in pixels, of a monospaced font of 12 pixels."""
LINE = 16
MARGIN = 14
BAR = 26
SPEED = 4.0
"""The picture runs so much faster than the demo."""
LAST_SECONDS = 10.0
"""How long the last frame stays."""
LOOK_SECONDS = 1.5
"""Time between two looks at the screen."""
COLOURS = {"cyan": "#5ccfe6", "magenta": "#d2a6ff", "green": "#7ee787", "yellow": "#ffd173", "red": "#ff7b72"}
GREY, PLAIN = "#8a94a6", "#d5d9e0"

Span = tuple[str, str]
"""Classes of a style (a colour, `bold`, both or none), and text in it."""


@dataclass(frozen=True, slots=True)
class Frame:
    seconds: float
    """When it is shown, in the demo's time."""
    lines: Sequence[Sequence[Span]]


@dataclass(slots=True)
class Camera(Screen):
    """A screen without a terminal: it records the frames that a terminal would show."""

    frames: list[Frame] = field(default_factory=list)
    _told: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def is_terminal(self) -> bool:
        return True

    @property
    def console(self) -> Console:
        return Console(file=io.StringIO(), width=COLUMNS, color_system="standard", force_terminal=True, highlight=False)

    @contextmanager
    def open(self) -> Iterator[None]:
        looking = asyncio.get_running_loop().create_task(self._look())
        try:
            yield
        finally:
            if looking.done():
                looking.result()
            looking.cancel()

    async def _look(self) -> None:
        while True:
            self.keep()
            await asyncio.sleep(LOOK_SECONDS)

    def tell(self, text: str) -> None:
        for line in text.splitlines():
            self._told += folded(line)

    def keep(self, *more: str) -> None:
        """Keep a frame: the last lines, and the panel below them. `more`: lines instead of the panel."""
        console = self.console
        below = [[("", line)] for line in more] if more else rendered(console, self)
        above = [[(tone(line), line)] for line in ["$ make demo", *self._told][-(ROWS - len(below)) :]]
        self.frames.append(Frame(round(time.monotonic() - self._began, 2), [*above, *below]))


def rendered(console: Console, screen: Screen) -> list[list[Span]]:
    lines = console.render_lines(screen.renderable(), pad=False)
    return [[(_style(part.style), part.text) for part in line if part.text.strip("\n")] for line in lines]


def _style(style: Style | None) -> str:
    if style is None:
        return ""
    colour = style.color.name if style.color is not None else ""
    words = (
        colour if colour in COLOURS else "grey" if colour else "",
        style.bold and "bold",
        style.reverse and "reverse",
    )
    return " ".join(word for word in words if word)


def tone(line: str) -> str:
    return "cyan bold" if line.startswith(("> ", "$ ")) else "grey"


def folded(text: str) -> Iterator[str]:
    """The text in lines as long as the picture is wide."""
    yield text[:COLUMNS]
    for start in range(COLUMNS, len(text), COLUMNS - 4):
        yield "    " + text[start : start + COLUMNS - 4]


def record() -> None:
    """Runs the demo and keeps its screen. Raises SystemExit if the demo fails."""
    camera = Camera()

    async def run() -> int:
        plan = DemoPlan("embedded", 60.0, 6, 200.0, WORK, hold=False, keep=False)
        report = await run_demo(plan, camera)
        out = io.StringIO()
        report.show(Console(file=out, width=COLUMNS), Path("build") / "demo" / "report.json")
        lines = [part for line in out.getvalue().splitlines() for part in folded(line)]
        camera.keep(*lines[-(ROWS - 1) :])
        return report.exit_code

    if code := asyncio.run(run()):
        sys.exit(code)
    PICTURES.mkdir(exist_ok=True)
    RECORDING.write_text(
        "[\n" + ",\n".join(json.dumps([one.seconds, one.lines], ensure_ascii=False) for one in camera.frames) + "\n]\n"
    )


def distinct(frames: Sequence[Frame]) -> list[Frame]:
    """The frames without those that look like the one before."""
    return [one for at, one in enumerate(frames) if not at or one.lines != frames[at - 1].lines]


def draw(shown: Sequence[Frame]) -> str:
    """An SVG in which one frame after the other is visible; a viewer without animations shows the last one."""
    width, height = round(2 * MARGIN + COLUMNS * CHARACTER), BAR + 2 * MARGIN + ROWS * LINE
    starts = [frame.seconds / SPEED for frame in shown]
    whole = starts[-1] + LAST_SECONDS
    groups, rules = [], []
    lines: dict[str, int] = {}
    for number, frame in enumerate(shown):
        last = number == len(shown) - 1
        start = 100 * starts[number] / whole
        end = 100.0 if last else 100 * starts[number + 1] / whole
        steps = [(0.0, start == 0.0), (start, True), (end, last)]
        keys = "".join(f"{at:.3f}%{{visibility:{'visible' if on else 'hidden'}}}" for at, on in dict(steps).items())
        rules.append(f"@keyframes f{number}{{{keys}}}#f{number}{{animation-name:f{number}}}")
        rows = "".join(
            f'<use href="#l{lines.setdefault(_line(line), len(lines))}" y="{(row + 1) * LINE}"/>'
            for row, line in enumerate(frame.lines)
            if any(text.strip() for _, text in line)
        )
        groups.append(f'<g id="f{number}" visibility="{"visible" if last else "hidden"}">{rows}</g>')
    style = (
        f"text{{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:{PLAIN};white-space:pre}}"
        f".grey{{fill:{GREY}}}.bold{{font-weight:bold}}"
        + "".join(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items())
        + f"g[id]{{animation:{whole:.2f}s step-end infinite}}"
        + "".join(rules)
    )
    defined = "".join(f'<text id="l{at}">{line}</text>' for line, at in lines.items())
    dots = "".join(
        f'<circle cx="{MARGIN + 16 * place}" cy="{BAR // 2 + 2}" r="5" fill="{color}"/>'
        for place, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="A terminal that runs make demo">'
        f"<style>{style}</style><defs>{defined}</defs>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#14171c"/>{dots}'
        f'<g transform="translate({MARGIN},{BAR + 4})">{"".join(groups)}</g></svg>\n'
    )


def _line(line: Sequence[Span]) -> str:
    """The spans of a line. Each has its own place, since not every font has all signs in one width."""
    spans, column = [], 0
    for style, text in line:
        if text.strip():
            kind = f' class="{style}"' if style else ""
            length = "" if text.isascii() else f' textLength="{len(text.rstrip()) * CHARACTER:.0f}"'
            spans.append(f'<tspan x="{column * CHARACTER:.0f}"{length}{kind}>{escape(text.rstrip())}</tspan>')
        column += len(text)
    return "".join(spans)


def main(arguments: Sequence[str]) -> int:
    if "record" in arguments:
        record()
    PICTURE.write_text(draw(distinct([Frame(*one) for one in json.loads(RECORDING.read_text())])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Records `baton demo` and draws the recording as an animated picture of a terminal.

python docs/picture.py record    # runs the demo, about a minute; writes docs/pictures/demo.json, then draws
python docs/picture.py           # draws docs/pictures/demo.svg from docs/pictures/demo.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"
RECORDING = PICTURES / "demo.json"
PICTURE = PICTURES / "demo.svg"

COLUMNS = 118
ROWS = 26
CHARACTER = 7.25
"""Width in pixels, of a monospaced font of 12 pixels."""
LINE = 16
MARGIN = 14
BAR = 26
SPEED = 4.0
"""The picture runs so much faster than the demo."""
LAST_SECONDS = 8.0
"""How long the last frame stays."""
LEAST_SECONDS = 0.4
"""Lines that come closer together are one frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    seconds: float
    """When it is shown, in the picture's time."""
    lines: Sequence[str]


def record() -> None:
    """Runs the demo and keeps each line with its time. Raises CalledProcessError if the demo fails."""
    command = [str(Path(sys.executable).with_name("baton")), "demo"]
    lines = []
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            lines.append((round(time.monotonic() - started, 2), line.rstrip("\n")))
    if demo.returncode:
        raise subprocess.CalledProcessError(demo.returncode, command)
    PICTURES.mkdir(exist_ok=True)
    RECORDING.write_text(json.dumps(lines, indent=0, ensure_ascii=False) + "\n")


def folded(text: str) -> Iterator[str]:
    """The text in lines as long as the picture is wide."""
    yield text[:COLUMNS]
    for start in range(COLUMNS, len(text), COLUMNS - 4):
        yield "    " + text[start : start + COLUMNS - 4]


def frames(recording: Sequence[tuple[float, str]]) -> list[Frame]:
    """The last rows of the screen after each line."""
    screen: list[str] = ["$ make demo"]
    found = [Frame(0.0, tuple(screen))]
    for seconds, text in recording:
        screen += folded(text)
        frame = Frame(seconds / SPEED, tuple(screen[-ROWS:]))
        if frame.seconds - found[-1].seconds < LEAST_SECONDS:
            frame = Frame(found.pop().seconds, frame.lines)
        found.append(frame)
    return found


def draw(shown: Sequence[Frame]) -> str:
    """An SVG in which one frame after the other is visible; a viewer without animations shows the last one."""
    width, height = round(2 * MARGIN + COLUMNS * CHARACTER), BAR + 2 * MARGIN + ROWS * LINE
    whole = shown[-1].seconds + LAST_SECONDS
    groups, rules = [], []
    for number, frame in enumerate(shown):
        last = number == len(shown) - 1
        start = 100 * frame.seconds / whole
        end = 100.0 if last else 100 * shown[number + 1].seconds / whole
        steps = [(0.0, start == 0.0), (start, True), (end, last)]
        keys = "".join(f"{at:.3f}%{{visibility:{'visible' if on else 'hidden'}}}" for at, on in dict(steps).items())
        rules.append(f"@keyframes f{number}{{{keys}}}#f{number}{{animation-name:f{number}}}")
        rows = "".join(
            f'<text class="{_class(line)}" y="{(row + 1) * LINE}">{escape(line)}</text>'
            for row, line in enumerate(frame.lines)
            if line.strip()
        )
        groups.append(f'<g id="f{number}" visibility="{"visible" if last else "hidden"}">{rows}</g>')
    style = (
        "text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d5d9e0;white-space:pre}"
        ".step{fill:#7cc7ff;font-weight:bold}.good{fill:#7ee787;font-weight:bold}.line{fill:#9aa4b2}"
        f"g[id]{{animation:{whole:.2f}s step-end infinite}}" + "".join(rules)
    )
    dots = "".join(
        f'<circle cx="{MARGIN + 16 * place}" cy="{BAR // 2 + 2}" r="5" fill="{color}"/>'
        for place, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="A terminal that runs make demo">'
        f'<style>{style}</style><rect width="{width}" height="{height}" rx="8" fill="#14171c"/>{dots}'
        f'<g transform="translate({MARGIN},{BAR + 4})">{"".join(groups)}</g></svg>\n'
    )


def _class(line: str) -> str:
    if line.startswith(("> ", "$ ", "Switches", "Found in")):
        return "step"
    if line == "nothing was lost":
        return "good"
    return "line" if " | " in line else "plain"


def main(arguments: Sequence[str]) -> int:
    if "record" in arguments:
        record()
    PICTURE.write_text(draw(frames(json.loads(RECORDING.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The live panel of `baton demo`, from glances that are made here."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from services.router.cli.demo.glance import Glance, StoreGlance
from services.router.cli.demo.panel import panel, rail, share_bar, sparkline

STORE = StoreGlance("serves", reads=120.0, writes=30.0, records=731, buckets=1024, lag_seconds=0.04)
GLANCE = Glance(
    seconds=12.0,
    phase="DUAL_WRITE 10 %, held at A",
    stores={"A": replace(STORE, buckets=922), "B": replace(STORE, buckets=102, state="away", lag_seconds=None)},
    calls_per_second=200.0,
    handoffs=81,
    stale_reads=3,
    errors=2,
    acknowledged=123_456,
    p50=4.2,
    p99=33.0,
    hold=True,
)


def shown(width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(panel([GLANCE] * 40, "B is killed", "job-1 ███░ 3 of 4", width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_panel_says_everything_without_colour_and_within_the_width(width: int) -> None:
    lines = shown(width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 14, "no line is folded"
    text = "\n".join(lines)
    for part in (
        *("✓ SHADOW", "● DUAL_WRITE 10 % ", "○ CUTOVER", "held at A", "✓ serves", "✗ away", "A  922", "102  B", "731"),
        *("120", "30", "0.0 s", "?", "200 calls/s", "4 ms", "33 ms", "123456", "81", "▶ B is killed", "3 of 4"),
    ):
        assert part in text


def test_a_phase_that_no_release_knows_is_no_error() -> None:
    assert "●" not in rail("UNKNOWN", hold=False, width=100).plain


@pytest.mark.parametrize(
    ("of_a", "of_b", "bar"),
    [
        (0, 0, "··········"),
        (1024, 0, "██████████"),
        (1023, 1, "█████████▒"),
        (512, 512, "█████▒▒▒▒▒"),
        (1, 1023, "█▒▒▒▒▒▒▒▒▒"),
        (0, 1024, "▒▒▒▒▒▒▒▒▒▒"),
    ],
)
def test_a_store_that_owns_anything_has_a_cell_of_the_bar(of_a: int, of_b: int, bar: str) -> None:
    assert share_bar(of_a, of_b, 10).plain == bar


def test_a_sparkline_has_a_sign_for_each_value() -> None:
    assert sparkline([0, 5, 10, 12], top=10) == "▁▅██"
    assert sparkline([0, 0], top=0) == "▁▁"

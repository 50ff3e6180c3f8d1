"""The knee of a curve of pool sizes, and its report."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Sequence

import pytest
from rich.console import Console

from libs.proving.pools.curve import Point, Turn, knee, sizes_up_to
from libs.proving.pools.sweep import Plan, Server, take_turn
from services.router.cli.bench import parse_sizes
from services.router.cli.bench_report import PoolReport, bar
from services.router.cli.failure import CommandFailed, Exit

SERVER = Server("15.4", "shop", allowed=97, in_use=1, here=True)


def curve(*per_second: float, busy: float = 0.5) -> list[Point]:
    """Sizes 1, 2, 4, ... with these throughputs."""
    return [Point(2**n, value, 5.0, 10.0 * 2**n, busy) for n, value in enumerate(per_second)]


def said(points: Sequence[Point], *, rule: int | None = 4, processes: int = 1) -> str:
    screen = Console(file=io.StringIO(), width=200, color_system=None)
    screen.print(PoolReport(SERVER, points, rule, processes).screen())
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize(
    ("per_second", "size"),
    [
        ((100, 200, 400, 800), 8),
        ((100, 200, 390, 400, 405), 4),
        ((100, 200, 400, 380, 300), 4),
        ((1000, 1040, 1010), 1),
        ((100, 949, 1000), 4),
        ((100, 950, 1000), 2),
    ],
)
def test_the_knee_is_the_smallest_pool_that_gives_nearly_the_most(per_second: tuple[float, ...], size: int) -> None:
    assert knee(curve(*per_second)).size == size


def test_a_point_is_made_of_all_turns_of_its_size() -> None:
    turns = [Turn(1.0, [1.0] * 98, 0.2), Turn(2.0, [1.0] * 100, 0.4), Turn(1.0, [9.0, 50.0], 0.3)]
    assert Point.of(3, turns) == Point(3, 50.0, 1.0, 1.0, 0.3)
    with pytest.raises(ValueError, match="measure for longer"):
        Point.of(3, [Turn(1.0, [], 0.0)])


def test_the_usual_sizes_have_the_one_of_the_rule_and_none_that_is_not_free() -> None:
    assert sizes_up_to(10, 5) == (1, 2, 3, 4, 5, 6, 8)
    assert sizes_up_to(4, 5) == sizes_up_to(4, None) == (1, 2, 3, 4)
    assert sizes_up_to(0, 5) == ()


def test_the_chart_shows_both_curves_and_marks_the_knee_and_the_rule() -> None:
    chart = said(curve(250, 1000, 1000)).splitlines()
    assert chart[1].split() == ["1", "250", bar(0.25), "10.0", bar(0.25)]
    assert chart[2].split() == ["2", "1,000", bar(1), "20.0", bar(0.5), "knee"]
    assert chart[3].split(maxsplit=5) == ["4", "1,000", bar(1), "40.0", bar(1), "2 × cores + 1"]
    assert "knee: 2 connections give 100% of the most (1,000 calls/s with 2), p99 20.0 ms" in said(
        curve(250, 1000, 1000)
    )
    assert len(bar(1)) == 4 * len(bar(0.25)) > 0 and bar(0) == "" and bar(0.0001) == "▏"


def test_processes_that_need_more_than_the_server_allows_are_warned_about_as_by_the_doctor() -> None:
    points = curve(100, 200, 400, 400)
    assert "7 processes × 13 connections = 91, the server allows 97: fits" in said(points, processes=7)
    found = said(points, processes=8)
    assert (
        "8 processes × 13 connections = 104, the server allows 97: doctor would warn: make the pools smaller" in found
    )


def test_a_curve_that_says_less_than_it_seems_is_told_so() -> None:
    assert "the knee is that of one process" in said(curve(100, 200, 200, busy=0.95))
    assert "measure larger sizes" in said(curve(100, 200, 400))
    assert "note:" not in said(curve(100, 200, 200))


class Counting:
    """A connection that counts whose calls it did."""

    def __init__(self) -> None:
        self.calls: Counter[asyncio.Task[object] | None] = Counter()

    async def fetchrow(self, *statement: object) -> dict[str, int]:
        self.calls[asyncio.current_task()] += 1
        await asyncio.sleep(0)
        return {"revision": 1}


async def test_callers_of_a_pool_have_their_turns_one_after_the_other() -> None:
    connection = Counting()
    found = await take_turn([connection], Plan((1,), callers=5, write_percent=0), 0.05)
    turns = connection.calls.values()
    assert len(turns) == 5 and max(turns) - min(turns) <= 1
    assert len(found.milliseconds) == connection.calls.total() > 5


@pytest.mark.parametrize("text", ["", "x", "0", "1,,2", "2,501", "-1"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(CommandFailed, match="numbers from 1 to 500") as refused:
        parse_sizes(text)
    assert refused.value.code is Exit.USAGE


def test_sizes_are_taken_in_order_and_once() -> None:
    assert parse_sizes("8, 2,2,4") == (2, 4, 8)

"""Examples of differences in each control store: shared by all routers, bounded, newest first."""

from __future__ import annotations

import pytest

from libs.clock import SystemClock
from services.router.core.compare import Kind
from services.router.core.difference_evidence import KINDS, SLOTS, to_json
from services.router.flows.calls.difference_book import DifferenceBook, DifferenceNotFound
from tests.contracts.control_adapters import OpenControl
from tests.unit.test_difference_evidence import difference, example, sandbox


async def test_examples_of_all_routers_are_shown_newest_first_and_their_number_is_bounded(
    open_control: OpenControl,
) -> None:
    async with open_control(None) as one, open_control(None) as other:
        books = [DifferenceBook(control, name, SystemClock()) for name, control in (("one", one), ("other", other))]
        for number in range(200):
            kind = (Kind.MISMATCH, Kind.MISSING)[number % 2]
            found = difference(f"f{number // 2}", kind=kind, time=float(number))
            books[number % 2].offer(example(found, sandbox("a" * 20_000), sandbox("b" * 20_000)))
        for book in books:
            await book.write()
        shown = await books[0].examples()
        assert shown == await books[1].examples()
        assert len(shown) == SLOTS * len(KINDS)
        assert [one.difference.time_seconds for one in shown] == sorted(
            (one.difference.time_seconds for one in shown), reverse=True
        )
        assert sum(len(to_json(one)) for one in shown) < 2_000_000
        assert await books[0].find(shown[-1].id) == shown[-1]
        with pytest.raises(DifferenceNotFound):
            await books[0].find("mismatch-1-gone")

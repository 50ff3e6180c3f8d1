"""One page of a list at one store."""

from __future__ import annotations

from dataclasses import replace

from libs.contract.operations import List
from libs.rpc.limits import ANSWER_BYTES
from libs.store.port import Listed, StorePorts


async def page_of(ports: StorePorts, wanted: List) -> tuple[list[Listed], bool]:
    """The rows of a page, at most ANSWER_BYTES of payload but at least one, and whether more may follow.

    If the last row does not match, the store ended its search there: the page is short, or empty.
    """
    page = wanted.page
    rows = await ports.records.page(replace(page, limit=page.limit + 1))
    size = 0
    for position, listed in enumerate(rows):
        size += len(listed.row.payload) if listed.matches else 0
        if position == page.limit or (position and size > ANSWER_BYTES):
            return rows[:position], True
    return rows, bool(rows) and not rows[-1].matches

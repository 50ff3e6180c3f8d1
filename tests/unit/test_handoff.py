"""Concurrent callers of one record share one handoff."""

import asyncio

from services.router.flows.moving.handoff import Single
from tests.waiting import eventually


async def test_one_flight_serves_all_who_ask_meanwhile_and_does_not_end_with_one_of_them() -> None:
    flights, go_on = Single(), asyncio.Event()
    begun = 0

    async def work() -> str:
        nonlocal begun
        begun += 1
        await go_on.wait()
        return "moved"

    first, second = (asyncio.create_task(flights.run("key", work)) for _ in range(2))
    other = asyncio.create_task(flights.run("another key", work))
    await eventually(lambda: begun == 2)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    assert (await second, await other, begun) == ("moved", "moved", 2)
    assert (await flights.run("key", work), begun) == ("moved", 3), "what has ended is not shared"

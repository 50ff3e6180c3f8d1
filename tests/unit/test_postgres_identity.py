"""A process knows its database again, whichever of its connections answers first."""

from __future__ import annotations

import asyncio

import pytest

from libs.store.recovery import DatabaseReplaced
from services.service_layer.store.postgres_identity import Anchor


class Server:
    """A stand-in for the connection's foreign type. It answers on command, with its state at the time of the query."""

    def __init__(self) -> None:
        self.changes = 100
        self.database = "here"
        self.answers: list[asyncio.Future[dict[str, object]]] = []
        self.made: list[dict[str, object]] = []

    async def fetchrow(self, statement: str) -> dict[str, object]:
        assert statement
        self.made.append({"database": self.database, "changes": self.changes})
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def answer(self, number: int) -> None:
        self.answers[number].set_result(self.made[number])


async def asked(anchor: Anchor, server: Server) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.create_task(anchor.ask(server))
    # One turn of the loop takes it to the server.
    await asyncio.sleep(0)
    return task


async def known(server: Server) -> Anchor:
    anchor = Anchor()
    first = await asked(anchor, server)
    server.answer(0)
    await first
    return anchor


async def test_answers_that_arrive_in_another_order_than_they_were_made_are_no_way_back() -> None:
    server = Server()
    anchor = await known(server)
    server.changes = 110
    earlier = await asked(anchor, server)
    server.changes = 120
    later = await asked(anchor, server)
    server.answer(2)
    await later
    server.answer(1)
    await earlier
    assert anchor.known is not None and anchor.known.changes == 120


async def test_a_database_with_less_than_was_known_before_the_question_went_back() -> None:
    server = Server()
    anchor = await known(server)
    server.changes = 99
    task = await asked(anchor, server)
    server.answer(1)
    with pytest.raises(DatabaseReplaced, match="at 99, it was here at 100"):
        await task


async def test_first_answers_of_two_databases_do_not_pass_for_one() -> None:
    server = Server()
    anchor = Anchor()
    first = await asked(anchor, server)
    server.database = "elsewhere"
    second = await asked(anchor, server)
    server.answer(0)
    await first
    server.answer(1)
    with pytest.raises(DatabaseReplaced, match="elsewhere"):
        await second

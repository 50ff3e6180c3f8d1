"""The trial's clients over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx2
import pytest

from libs.proving.trial.doors import RestWay


class Server:
    """Answers when `ready` is set."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()

    async def request(self, verb: str, url: str, **parts: Any) -> httpx2.Response:
        await self.ready.wait()
        return httpx2.Response(200)


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_is_cancelled_when_its_answer_arrives_is_cancelled(turns: int) -> None:
    server = Server()
    way = RestWay("127.0.0.1:1", cast(httpx2.AsyncClient, server), cast(Any, None))
    call = asyncio.create_task(way._request("GET", "/", 9.0))
    for _ in range(5):
        await asyncio.sleep(0)
    server.ready.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = call.cancel()
    await asyncio.wait([call])
    assert call.cancelled() is cancelled

"""The stream of the operators' page: its end, and the failures of its parts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from libs.clock import ManualClock
from libs.identity.principal import ANONYMOUS
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.calls import Caller, CallFailed
from services.router.web.live import follow
from services.router.web.render import for_operator
from services.router.web.session import Session

OWN = for_operator(Session("ann", "the-form-value"), ANONYMOUS)


class Api:
    """The control API: a status again and again, and no other answer."""

    def __init__(self, error: Exception | None = None) -> None:
        """`error`: the outcome of all calls but the status."""
        self._error = error or CallFailed("no answer")

    async def call(self, method: str, request: Any, seconds: float = 0.0) -> Any:
        raise self._error

    async def stream(self, method: str, request: Any, take: Callable[[Any], Awaitable[None]]) -> None:
        status = pb.GetStatusResponse(setting=pb.Setting(phase=pb.PHASE_OFF, generation=1))
        while True:
            await take(pb.WatchStatusResponse(status=status))
            await asyncio.sleep(0)


def following(api: Api, clock: ManualClock, until: float) -> Any:
    return follow(cast("Caller", api), OWN, clock, lambda: False, until)


async def test_a_stream_ends_with_its_session() -> None:
    clock = ManualClock()
    stream = following(Api(), clock, clock.now() + 60)
    while b"event: tick" not in await anext(stream):
        pass
    clock.advance(60)
    async with asyncio.timeout(10):
        *_, last = [part async for part in stream]
    name, data = last.decode().splitlines()[:2]
    assert name == "event: ended"
    assert json.loads(data.removeprefix("data: ")) == {"text": "the session is over", "signed_out": True}


async def test_a_stream_that_no_longer_reads_fails_instead_of_showing_old_answers() -> None:
    clock = ManualClock()

    async def read() -> None:
        async for _ in following(Api(ZeroDivisionError()), clock, clock.now() + 60):
            pass

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(read(), 10)

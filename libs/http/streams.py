"""One call with many answers over one HTTP response, for every door: its start, its end, and a caller that leaves.

The gate waits for a caller that takes no answer, within its bound (`libs.rpc.gate`). The last bytes have a bound of
their own here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

from starlette.types import Receive, Send

from libs.contract.descriptors import Method
from libs.http.asgi import Connection, begin
from libs.http.call import DoorCall, Ended
from libs.http.errors import Failure
from libs.http.gateway import Gateway, failure

FAREWELL_SECONDS = 1.0
"""How long the last bytes of a stream may take to be sent."""


class StreamForm(Protocol):
    """How a protocol writes a stream."""

    def headers(self, call: DoorCall) -> dict[str, str]:
        """The headers of a response that has begun, the content type among them."""

    def answer(self, data: bytes) -> bytes:
        """One serialized answer, as it is sent."""

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        """The end of the response. `failed`: the error that ended the call."""

    async def refuse(self, call: DoorCall, failed: Failure, send: Send) -> bool:
        """Answer a call that ended before its first answer by a response of its own. False: `last` reports it."""


class StreamedAnswer:
    """One response."""

    def __init__(self, form: StreamForm, send: Send, connection: Connection | None) -> None:
        self._form = form
        self._send = send
        self._connection = connection
        self._begun = False

    async def run(self, gateway: Gateway, method: Method, call: DoorCall, receive: Receive) -> None:
        """To its end, or until the caller leaves."""
        call.writer = partial(self._write, call)
        stream = asyncio.ensure_future(gateway.stream(method, call))
        leaving = asyncio.ensure_future(_left(call, receive))
        try:
            await asyncio.wait((stream, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not stream.done():
                call.left = True
                return
            await stream
            await self._finish(call, None)
        except Ended as ended:
            await self._finish(call, failure(ended))
        finally:
            for task in (stream, leaving):
                task.cancel()
            await asyncio.gather(stream, leaving, return_exceptions=True)

    async def _write(self, call: DoorCall, answer: bytes) -> None:
        await self._begin(call)
        await self._send({"type": "http.response.body", "body": self._form.answer(answer), "more_body": True})

    async def _begin(self, call: DoorCall) -> None:
        if not self._begun:
            self._begun = True
            await begin(self._send, 200, self._form.headers(call))

    async def _finish(self, call: DoorCall, failed: Failure | None) -> None:
        if failed is not None and not self._begun and await self._form.refuse(call, failed, self._send):
            return
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._begin(call)
                await self._send({"type": "http.response.body", "body": self._form.last(call, failed)})
        except TimeoutError:
            # A caller that takes nothing would keep what was written in memory for as long as it likes.
            if self._connection is not None:
                self._connection.abort()


async def _left(call: DoorCall, receive: Receive) -> None:
    """Returns when the caller has gone."""
    await call.was_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass

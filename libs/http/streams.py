"""A call with a stream of answers over one HTTP response, for every door: its start, its end, and a caller that leaves.

The gate limits how long a stream waits for a slow caller (`libs.rpc.gate`). The last bytes have a limit of their own
here.
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
"""Time for sending the last bytes of a stream."""


class StreamForm(Protocol):
    """Form of a stream in one protocol."""

    def headers(self, call: DoorCall) -> dict[str, str]:
        """Headers of a started response, including the content type."""

    def answer(self, data: bytes) -> bytes:
        """One serialized answer in the protocol's form."""

    def last(self, call: DoorCall, failed: Failure | None) -> bytes:
        """End of the response. `failed`: the error that ended the call."""

    async def refuse(self, call: DoorCall, failed: Failure, send: Send) -> bool:
        """Respond to a call that ended before its first answer. False: `last` reports the error instead."""


class StreamedAnswer:
    """One response."""

    def __init__(self, form: StreamForm, send: Send, connection: Connection | None) -> None:
        self._form = form
        self._send = send
        self._connection = connection
        self._begun = False

    async def run(self, gateway: Gateway, method: Method, call: DoorCall, receive: Receive) -> None:
        """Run to the end, or until the caller leaves."""
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
            # The written bytes of a caller that does not read would stay in memory as long as it likes.
            if self._connection is not None:
                self._connection.abort()


async def _left(call: DoorCall, receive: Receive) -> None:
    """Wait until the caller has left."""
    await call.was_read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass

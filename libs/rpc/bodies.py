"""Reads the requests of calls, so that callers who send slowly or not at all cannot shut a listener.

A call begins with its headers; its body may come much later, or never. The server's methods are registered as methods
that take a stream, so a handler runs from the headers on and reads the one message itself:

* Reading has a bound, whatever deadline the caller gave.
* A bounded number of bodies is read at a time, so the memory for them is bounded too. When all places are taken, a body
  that has been read for longer than `SLOW_SECONDS` gives its place up to the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from libs.errors import InvalidField
from libs.rpc.errors import Context, DeadlineExceeded

READING = 64
"""Bodies that a listener reads at a time."""

BODY_SECONDS = 10.0
"""How long a body may take when no other call waits for its place."""

SLOW_SECONDS = 1.0
"""How long a body may take when another call waits for its place."""


class Bodies:
    """The bodies that one listener reads."""

    def __init__(self, reading: int = READING, slow_seconds: float = SLOW_SECONDS) -> None:
        self._most = reading
        self._slow_seconds = slow_seconds
        self._reading: dict[asyncio.Task[Any], float] = {}
        """Each with the time of the event loop at which it began, the oldest first."""
        self._evicted: set[asyncio.Task[Any]] = set()
        self._freed = asyncio.Event()

    async def read(self, context: Context, remaining_seconds: float | None) -> bytes:
        """The call's one message. `remaining_seconds`: until the caller's deadline, at which gRPC cancels the call.

        Raises InvalidField if there is no message, DeadlineExceeded if it does not come in time.
        """
        if remaining_seconds is not None and remaining_seconds <= BODY_SECONDS:
            return await self._read(context)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(context)
        except TimeoutError:
            raise _late() from None

    async def _read(self, context: Context) -> bytes:
        clock = asyncio.get_running_loop().time
        while len(self._reading) >= self._most:
            await self._wait(clock)
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task"
        self._reading[task] = clock()
        try:
            message: Any = await context.read()
            if task in self._evicted:
                # The body came while the cancel was under way. It arrives here, not somewhere in the handler.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task not in self._evicted:
                raise
            task.uncancel()
            raise _late() from None
        finally:
            self._reading.pop(task, None)
            self._evicted.discard(task)
            self._freed.set()
        if message is grpc.aio.EOF:
            # The caller sent no message, or one that the transport has refused as too large.
            raise InvalidField("request", "no message", "one message of this method")
        body: bytes = message
        return body

    async def _wait(self, clock: Callable[[], float]) -> None:
        """Until a place may be free. The oldest body gives its place up when it is slow."""
        task, began = next(iter(self._reading.items()))
        left = began + self._slow_seconds - clock()
        if left <= 0:
            del self._reading[task]
            self._evicted.add(task)
            task.cancel()
            return
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._freed.wait()


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's body did not come in time; nothing was done")

"""Reading of request bodies, such that slow or silent callers cannot block a listener.

A call begins with its headers; its body may arrive much later, or never. So the server registers its methods as ones
that take a stream: a handler runs from the headers on and reads the single message itself.

* Reading has a time limit, whatever the caller's deadline is.
* A limited number of bodies is read at a time, which limits their memory, and one caller has a share of these slots.
  If all are taken, a body that has been read for longer than `SLOW_SECONDS` gives its slot to the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from libs.errors import InvalidField
from libs.rpc.callers import Caller
from libs.rpc.errors import Context, DeadlineExceeded
from libs.rpc.time_limit import TimeLimit, TimeLimitPassed

READING = 64
"""Number of bodies that a listener reads at a time."""

BODY_SECONDS = 10.0
"""Time limit of a body while no other call waits for its slot."""

SLOW_SECONDS = 1.0
"""Time limit of a body while another call waits for its slot."""


class Bodies:
    """The request bodies of one listener."""

    def __init__(self, reading: int = READING, slow_seconds: float | None = None, share: float = 1.0) -> None:
        """`share`: share of the slots that one caller may use."""
        self._most = reading
        self._most_of_one = reading * share
        self._limit = TimeLimit(BODY_SECONDS)
        self._slow_seconds = SLOW_SECONDS if slow_seconds is None else slow_seconds
        self._reading: dict[asyncio.Task[Any], tuple[float, Caller]] = {}
        """Start of each reading by the event loop's clock, and its caller. Oldest first."""
        self._evicted: set[asyncio.Task[Any]] = set()
        self._freed = asyncio.Event()

    async def read(self, context: Context, remaining_seconds: float | None, caller: Caller | None) -> bytes:
        """Read the call's single message.

        `remaining_seconds`: time until the caller's deadline, at which gRPC cancels the call. `caller`: None for a call
        that waits for no slot. Raises InvalidField if there is no message, DeadlineExceeded if it is late.
        """
        if remaining_seconds is not None and remaining_seconds <= BODY_SECONDS:
            return await self._read(context, caller)
        try:
            return await self._limit.run(self._read(context, caller))
        except TimeLimitPassed:
            raise _late() from None

    async def _read(self, context: Context, caller: Caller | None) -> bytes:
        clock = asyncio.get_running_loop().time
        if caller is None:
            return body_of(await context.read())
        while len(self._reading) >= self._most or caller.reading >= self._most_of_one:
            await self._wait(clock, caller)
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task"
        self._reading[task] = clock(), caller
        caller.reading += 1
        try:
            message: Any = await context.read()
            if task in self._evicted:
                # The body arrived during the cancellation. It must take effect here, not later in the handler.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task not in self._evicted:
                raise
            task.uncancel()
            raise _late() from None
        finally:
            if self._reading.pop(task, None) is not None:
                caller.reading -= 1
            self._evicted.discard(task)
            self._freed.set()
        return body_of(message)

    async def _wait(self, clock: Callable[[], float], caller: Caller) -> None:
        """Wait until a slot may be free. The oldest body loses its slot if it is slow: the oldest of all, or of the
        caller that uses its share."""
        everyone = len(self._reading) >= self._most
        task, began, reader = next(
            (task, began, one) for task, (began, one) in self._reading.items() if everyone or one is caller
        )
        left = began + self._slow_seconds - clock()
        if left <= 0:
            del self._reading[task]
            reader.reading -= 1
            self._evicted.add(task)
            task.cancel()
            return
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._freed.wait()


def body_of(message: Any) -> bytes:
    """Raises InvalidField."""
    if message is grpc.aio.EOF:
        # The caller sent no message, or the transport refused one that is too large.
        raise InvalidField("request", "no message", "one message of this method")
    body: bytes = message
    return body


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's body did not arrive in time; nothing was done")

"""Waiting on a condition, with a bound, instead of sleeping."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, overload

T = TypeVar("T")

_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.1
_POLL_SHARE = 0.02
"""Polling interval as a share of the time waited so far. Long waits poll less often: most conditions query a process
that has work to do."""


class NotReached(AssertionError):
    """A condition did not become true in time. The message shows its last value."""


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_seconds: float = ..., what: str = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], timeout_seconds: float = ..., what: str = ...) -> T: ...
async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    timeout_seconds: float = 10.0,
    what: str = "",
) -> T:
    """Call `condition` (plain or async) until its value is true, and return that value.

    An AssertionError that it raises counts as not yet true, so a condition may be written with asserts; any other
    exception ends the wait. Raises NotReached with the last value (or failed assertion) after `timeout_seconds`; a call
    that is still under way then is cancelled.
    """
    last: object = "never evaluated"
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                try:
                    value = condition()
                    last = result = await value if inspect.isawaitable(value) else value
                    if result:
                        return result
                except AssertionError as error:
                    last = error
                pause = _POLL_SHARE * (time.monotonic() - started)
                await asyncio.sleep(min(max(pause, _POLL_SECONDS), _LONGEST_POLL_SECONDS))
    except TimeoutError as error:
        spent = time.monotonic() - started
        name = what or getattr(condition, "__name__", repr(condition))
        raise NotReached(f"{name}: not reached within {spent:.1f} s; last value: {last!r}") from error


@asynccontextmanager
async def loop_turns() -> AsyncIterator[Callable[[], int]]:
    """Count the turns of the event loop: between two steps of work that does not yield, the count stays the same."""
    count = 0

    async def turn() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    try:
        yield lambda: count
    finally:
        turning.cancel()

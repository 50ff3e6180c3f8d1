"""One time limit for many calls, with one timer for all of them.

`asyncio.timeout` makes and cancels a timer for each call, which costs more than the rest of a call's admission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class TimeLimitPassed(Exception):
    """The work took longer than its limit, and was cancelled."""


class TimeLimit:
    """Calls with the same limit end in the order in which they began. So the timer waits for the oldest one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}
        """End of each task's work by the event loop's clock, oldest first."""
        self._passed: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<TimeLimit {self.seconds:g} s, calls={len(self._ends)}>"

    async def run(self, work: Awaitable[T]) -> T:
        """Await `work` in the running task, as `asyncio.timeout` does. A task has one piece of work at a time here.

        Raises TimeLimitPassed.
        """
        task = asyncio.current_task()
        assert task is not None, "it runs in a task"
        loop = asyncio.get_running_loop()
        self._ends[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)
        cancelled_before = task.cancelling()
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._passed:
                self._passed.discard(task)
                if task.uncancel() <= cancelled_before:
                    raise TimeLimitPassed from None
            raise
        finally:
            self._ends.pop(task, None)
            if task in self._passed:
                # The work ended by itself at the same moment.
                self._passed.discard(task)
                task.uncancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, ends_at in list(self._ends.items()):
            if ends_at > now:
                self._timer = loop.call_at(ends_at, self._look)
                return
            del self._ends[task]
            self._passed.add(task)
            task.cancel()
        self._timer = None

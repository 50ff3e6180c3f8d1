"""Owners of tasks: work that outlives its caller, and loops that run as long as the process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from libs.errors import BatonError, Overloaded, StoreNotReady

log = logging.getLogger(__name__)

T = TypeVar("T")

_CANCEL_SECONDS = 1.0


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run `work` concurrently and return the results. The first failure cancels the rest and is raised after all have
    ended."""
    if not work:
        return []
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


class Background:
    """Owner of tasks that continue after their callers leave: at most `limit`, awaited by `drain`.

    `waiting`: number of tasks in a queue with a limit of its own. They do not count towards `limit`.
    """

    def __init__(self, limit: int, name: str, waiting: Callable[[], int] = lambda: 0) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1")
        self._limit = limit
        self._name = name
        self._waiting = waiting
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False

    def __repr__(self) -> str:
        draining = " draining" if self._draining else ""
        return f"<Background {self._name} {len(self._tasks)}/{self._limit}{draining}>"

    @property
    def running(self) -> int:
        return len(self._tasks)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in a task and return its result. If the caller is cancelled, the work continues.

        Raises the errors of `work`; Overloaded and StoreNotReady, if `work` did not begin.
        """
        if self._draining or len(self._tasks) - self._waiting() >= self._limit:
            work.close()
            raise StoreNotReady("the process is draining") if self._draining else Overloaded()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._retrieve_outcome)
            raise
        finally:
            # Break a cycle: an error holds this frame, the frame the task, and the task the error with all its frames.
            del task

    async def drain(self, timeout_seconds: float) -> int:
        """Accept no more work and wait for the running tasks. Cancels the rest after the timeout and returns their
        number."""
        self._draining = True
        if not self._tasks:
            return 0
        _, left = await asyncio.wait(set(self._tasks), timeout=timeout_seconds)
        for task in left:
            task.cancel()
        if left:
            log.warning("%s: %d task(s) cancelled after %g s", self._name, len(left), timeout_seconds)
            await asyncio.wait(left, timeout=_CANCEL_SECONDS)
        return len(left)

    def _retrieve_outcome(self, task: asyncio.Task[Any]) -> None:
        """Log the outcome of work whose caller has left."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, BatonError):
            log.info("%s: work ended with %s after its caller had left: %s", self._name, error.reason, error)
        elif error is not None:
            log.error("%s: work failed after its caller had left", self._name, exc_info=error)


class Loop:
    """A body that runs repeatedly. After a failure the loop pauses; the pause doubles up to a limit.

    `trouble`: why the loop does not advance, for people; "" while it does. The body calls `well` when it has advanced.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Loop], Awaitable[None]],
        *,
        first_pause_seconds: float = 0.05,
        longest_pause_seconds: float = 2.0,
    ) -> None:
        self.name = name
        self.failures = 0
        self.trouble = ""
        self._body = body
        self._first_pause = first_pause_seconds
        self._longest_pause = longest_pause_seconds
        self._pause = first_pause_seconds

    def __repr__(self) -> str:
        return f"<Loop {self.name} failures={self.failures} trouble={self.trouble!r}>"

    def well(self) -> None:
        """Record progress: clear `trouble` and reset the pause."""
        if self.trouble:
            log.info("%s has recovered", self.name)
            self.trouble = ""
        self._pause = self._first_pause

    async def run(self) -> None:
        """Run until cancelled, also if the body loses the cancellation: before Python 3.12 `asyncio.wait_for`, which
        libraries use, does so when it arrives together with a result."""
        task = asyncio.current_task()
        assert task is not None, "it runs in a task"
        while not task.cancelling():
            try:
                await self._run_body()
            # This task is the body's outermost handler: it counts and logs every failure, then tries again.
            except Exception as error:  # noqa: BLE001
                self._failed(error)
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2, self._longest_pause)
            else:
                await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def _run_body(self) -> None:
        """Distinguish cancellations: only a cancellation of this task ends the loop, not one of an awaited task."""
        try:
            await self._body(self)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise InterruptedError("a task that the loop awaited was cancelled") from error

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        trouble = f"{error.reason}: {error}" if isinstance(error, BatonError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, BatonError | OSError | TimeoutError):
            log.error("%s failed unexpectedly", self.name, exc_info=error)
        elif trouble != self.trouble:
            log.warning("%s does not advance: %s", self.name, trouble)
        self.trouble = trouble

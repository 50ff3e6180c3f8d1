"""Bringing one record to where it is wanted.

Everything here may be done twice, by several routers, in the middle, or long after it was wanted: a release that is
repeated returns what was released, an adopt keeps the higher version. So nothing is ever undone, only finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from enum import Enum
from typing import Any, TypeVar

from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, bucket_of
from libs.ownership.wire import version_from_pb
from services.router.flows.moving.bucket_owners import Absences
from services.router.flows.moving.transfer import ABSENT, BUSY, RELEASED, STEP_SECONDS, Result, Transfer
from services.router.flows.traffic import Traffic

T = TypeVar("T")


class Moved(Enum):
    HERE = "here"
    """The record, or its bucket's absence, has arrived: ask again."""
    ABSENT = "absent"
    """There is no record, and the source may say so: ask it."""
    BUSY = "busy"
    """It could not be had now: the owner may do the work where the record is."""


class Single:
    """One flight per key: whoever asks for the same while it is under way gets the same result."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        task = self._flights.get(key)
        if task is None:
            task = asyncio.ensure_future(work())
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
            # Whoever waits sees the failure; when all have left, nobody needs to.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        result: T = await asyncio.shield(task)
        return result


class Handoffs:
    """Raises what the stores' clients raise: Away, Refused."""

    def __init__(self, transfer: Transfer, absences: Absences, traffic: Traffic) -> None:
        self._transfer = transfer
        self._absences = absences
        self._traffic = traffic
        self._flights = Single()

    async def bring(self, key: str, to: Store, denied: NotOwner, *, create: bool) -> Moved:
        """Moves one record to a store that has just said that it serves, but does not own it (`denied`).

        `create`: the record need not exist.
        """
        return await self._flights.run((key, to, create), lambda: self._bring(key, to, denied, create))

    async def _bring(self, key: str, to: Store, denied: NotOwner, create: bool) -> Moved:
        for _ in range(2):
            result = await self._release(key, to, create)
            if result.outcome == BUSY:
                return Moved.BUSY
            if result.outcome == ABSENT:
                return Moved.ABSENT
            if result.HasField("record") and version_from_pb(result.record.version) > denied.version:
                await self._transfer.adopt([result.record], to, STEP_SECONDS)
                self._traffic.moved(key)
                return Moved.HERE
            if denied.absent:
                await self._finish_absence(bucket_of(key))
                return Moved.HERE
            # The target's own row is the newest: it was released towards the source and has not arrived there yet.
            released = await self._release(key, to.other, create=False)
            if released.outcome != RELEASED:
                return Moved.BUSY
            await self._transfer.adopt([released.record], to.other, STEP_SECONDS)
        return Moved.BUSY

    async def _release(self, key: str, to: Store, create: bool) -> Result:
        answer = await self._transfer.release([key], to, create=create, seconds=STEP_SECONDS)
        return answer.results[0]

    async def _finish_absence(self, bucket: int) -> None:
        await self._flights.run(bucket, lambda: self._absences.finish([bucket]))

"""Handoff of one record to the store that should own it.

Each step is idempotent, and several routers may do it at once, or late: a repeated release returns the released row,
and an adopt keeps the higher version. So a handoff is never undone, only finished.

The write that waits for the handoff can take a small record along, which saves a round trip: the target adopts the
record first, and then carries the write out by its own row, as if the two had arrived one after the other. If such a
call is lost, the handoff is under way, as after any release.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from libs.ownership.errors import NotOwner
from libs.ownership.model import Store, Version, bucket_of
from libs.ownership.wire import version_from_pb
from libs.rpc.limits import ARRIVING_BYTES
from services.router.flows.moving.bucket_moves import BucketMoves
from services.router.flows.moving.transfer import ABSENT, BUSY, RELEASED, STEP_SECONDS, Result, Transfer
from services.router.flows.traffic import Traffic

T = TypeVar("T")

APART_SECONDS = 60.0
"""Time for which records travel apart from writes to a store that left one in its write: a store of an earlier
release."""


class Moved(Enum):
    HERE = "here"
    """The record, or ownership of its bucket, has arrived: repeat the call."""
    ABSENT = "absent"
    """The record does not exist, and the source owns its bucket: ask the source."""
    BUSY = "busy"
    """The record is busy: its present owner may do the write."""


class Arriving(NamedTuple):
    """A released record that the write takes along: send the write with it."""

    version: Version
    data: bytes


class Single:
    """Single flight per key: concurrent callers of the same work share its result."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        task = self._flights.get(key)
        if task is None:
            task = asyncio.ensure_future(work())
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
            # Waiting callers see the failure. If all have left, it needs no handling.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        result: T = await asyncio.shield(task)
        return result


class Handoffs:
    """Raises Away and Refused, as the stores' clients do."""

    def __init__(self, transfer: Transfer, bucket_owners: BucketMoves, traffic: Traffic) -> None:
        self._transfer = transfer
        self._bucket_owners = bucket_owners
        self._traffic = traffic
        self._flights = Single()
        self._apart_until: dict[Store, float] = {}

    async def bring(
        self, key: str, to: Store, denied: NotOwner, *, create: bool, along: bool = False
    ) -> Moved | Arriving:
        """Move one record to a store that serves and has just answered that it is not the owner (`denied`).

        `create`: the record need not exist. `along`: the caller can take the record along.
        """
        along = along and asyncio.get_running_loop().time() >= self._apart_until.get(to, 0.0)
        return await self._flights.run((key, to, create, along), lambda: self._bring(key, to, denied, create, along))

    def left(self, arriving: Arriving, denied: NotOwner, to: Store) -> None:
        """Note that a store denied a write that took this record along."""
        if denied.version < arriving.version:
            self._apart_until[to] = asyncio.get_running_loop().time() + APART_SECONDS

    async def _bring(self, key: str, to: Store, denied: NotOwner, create: bool, along: bool) -> Moved | Arriving:
        for _ in range(2):
            result = await self._release(key, to, create)
            if result.outcome == BUSY:
                return Moved.BUSY
            if result.outcome == ABSENT:
                return Moved.ABSENT
            if result.HasField("record") and version_from_pb(result.record.version) > denied.version:
                self._traffic.moved(key)
                if along and result.record.ByteSize() <= ARRIVING_BYTES:
                    return Arriving(version_from_pb(result.record.version), result.record.SerializeToString())
                await self._transfer.adopt([result.record], to, STEP_SECONDS)
                return Moved.HERE
            if denied.absent:
                await self.finish_bucket(key)
                return Moved.HERE
            # The target's own row is the newest: it was released to the source, which has not adopted it yet.
            released = await self._release(key, to.other, create=False)
            if released.outcome != RELEASED:
                return Moved.BUSY
            await self._transfer.adopt([released.record], to.other, STEP_SECONDS)
        return Moved.BUSY

    async def _release(self, key: str, to: Store, create: bool) -> Result:
        answer = await self._transfer.release([key], to, create=create, seconds=STEP_SECONDS)
        return answer.results[0]

    async def finish_bucket(self, key: str) -> None:
        """Let the key's bucket arrive if no store owns it now."""
        bucket = bucket_of(key)
        await self._flights.run(bucket, lambda: self._bucket_owners.finish([bucket]))

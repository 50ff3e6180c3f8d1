"""Copying every record of A to B under live traffic. Safe at any time: B keeps a copy only if its version is higher.

What is wanted (start, cancel, rate) and how far it has come are both in the control store, so any router may be told,
any one that holds the lease does it, and the next one goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.rpc.tasks import Loop
from services.router.control.port import ControlStore, ControlUnavailable, Progress
from services.router.flows.stores import Stores

JOB = "backfill"
WANTED = "backfill wanted"
LEASE = "backfill"
LEASE_SECONDS = 10.0
PAGE_RECORDS = 200
CALL_SECONDS = 5.0
MAX_RATE = 1_000_000.0

_CHECK_SECONDS = 0.5
_RATE_WINDOW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator asked for."""

    id: str = ""
    rate: float = 0.0
    """Records per second at most; 0: as fast as the stores allow."""
    by: str = ""

    def encode(self) -> str:
        return json.dumps({"id": self.id, "rate": self.rate, "by": self.by})

    @classmethod
    def decode(cls, text: str) -> Order:
        return cls(**json.loads(text)) if text else cls()


@dataclass(slots=True)
class _Meter:
    """Records per second over the last seconds."""

    clock: Clock
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def rate(self, done: int) -> float:
        now = self.clock.monotonic()
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[0][0] > _RATE_WINDOW_SECONDS:
            self.samples.popleft()
        since, before = self.samples[0]
        return (done - before) / (now - since) if now > since else 0.0


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far one order has come."""

    id: str = ""
    after: str = ""
    finished: bool = False

    def encode(self) -> str:
        return json.dumps({"id": self.id, "after": self.after, "finished": self.finished})

    @classmethod
    def decode(cls, text: str) -> _Cursor:
        return cls(**json.loads(text)) if text else cls()


class NoProgress(BatonError):
    """The copy does not come forward."""


class Backfill:
    """The job, at one router. The process runs `loop`; `start` and `cancel` tell all routers what is wanted."""

    def __init__(self, control: ControlStore, stores: Stores, holder: str, clock: Clock) -> None:
        self._control = control
        self._source = stores[Store.A]
        self._target = stores[Store.B]
        self._holder = holder
        self._clock = clock
        self._told = asyncio.Event()
        self._progress = Progress(JOB, False)
        self._next_look = 0.0
        self.loop = Loop("backfill", self.run_once, first_pause_seconds=0.1, longest_pause_seconds=1.0)

    @property
    def progress(self) -> Progress:
        """How far it has come, whichever router does it; half a second old, older while the control store is away."""
        if self.loop.trouble and self._progress.running:
            return replace(self._progress, rate=0.0, note=f"waits: {self.loop.trouble}")
        return self._progress

    def finished_seconds_ago(self) -> float | None:
        """Since the last one that was finished; None: never."""
        finished = self._progress.finished_seconds
        return max(0.0, self._clock.now() - finished) if finished else None

    async def start(self, actor: str, rate: float = 0.0) -> Progress:
        """Asks for a copy from the beginning, or for the rest of one that was cancelled. While one runs, only its rate
        is changed. Raises InvalidField, ControlUnavailable."""
        if not actor.strip():
            raise InvalidField("actor", actor, "who does this")
        if rate and not 1 <= rate <= MAX_RATE:
            raise InvalidField("rate", rate, f"1 to {MAX_RATE:.0f} records per second; 0 is as fast as possible")
        progress = await self._load()
        wanted, order = await self._wanted()
        goes_on = order.id and not self._is_done(progress, order)
        order = Order(order.id if goes_on else uuid.uuid4().hex, rate, actor)
        await self._control.save(Progress(WANTED, True, cursor=order.encode()))
        if not (wanted and progress.running):
            # So that whoever looks sees at once that it runs. What the one that runs it saves is newer, and stays.
            done = progress.done if goes_on else 0
            await self._save(replace(progress, running=True, done=done, rate=0.0, note=f"asked for by {actor}"))
        self._told.set()
        return self._progress

    async def cancel(self, actor: str) -> Progress:
        """Asks for it to stop. Raises InvalidField, ControlUnavailable."""
        if not actor.strip():
            raise InvalidField("actor", actor, "who does this")
        progress = await self._load()
        _, order = await self._wanted()
        if not self._is_done(progress, order):
            await self._control.save(Progress(WANTED, False, cursor=replace(order, by=actor).encode()))
        self._progress = progress
        self._told.set()
        return progress

    async def run_once(self, loop: Loop) -> None:
        """One look: does what is wanted, if nobody else does it."""
        self._told.clear()
        wanted, order = await self._wanted()
        progress = await self._load()
        loop.well()
        if wanted and not self._is_done(progress, order):
            if await self._control.lease(LEASE, self._holder, LEASE_SECONDS):
                try:
                    await self._copy(order, progress)
                finally:
                    with suppress(ControlUnavailable):
                        await self._control.lease(LEASE, self._holder, 0.0)
                return
        elif progress.running and not wanted and await self._control.lease(LEASE, self._holder, LEASE_SECONDS):
            await self._save(replace(progress, running=False, rate=0.0, note=f"cancelled by {order.by}"))
            await self._control.lease(LEASE, self._holder, 0.0)
        await self._pause(_CHECK_SECONDS)

    async def _copy(self, order: Order, progress: Progress) -> None:
        """Until the order is done, withdrawn, replaced or the lease is lost."""
        cursor = _Cursor.decode(progress.cursor)
        if cursor.id != order.id:
            cursor = _Cursor(order.id)
            progress = replace(progress, done=0)
        meter = _Meter(self._clock)
        meter.rate(progress.done)
        progress = replace(progress, running=True, note="copies", cursor=cursor.encode(), rate=0.0)
        await self._save(progress)
        self._next_look = 0.0
        failures = 0
        while True:
            goes_on, order = await self._still(order)
            if not goes_on:
                return
            started = self._clock.monotonic()
            try:
                cursor, copied, more = await self._page(cursor, order.rate)
                total = await self._total()
            except BatonError as error:
                failures += 1
                await self._save(replace(progress, rate=0.0, note=f"waits: {error.message or error.reason}"))
                await self._pause(min(0.1 * 2**failures, 2.0))
                continue
            failures = 0
            done = progress.done + copied
            progress = replace(
                progress,
                done=done,
                total=max(total, done),
                rate=meter.rate(done),
                note="copies",
                cursor=cursor.encode(),
            )
            if not more:
                await self._finish(progress, cursor)
                return
            await self._save(progress)
            if order.rate:
                await self._wait_out(started + copied / order.rate)

    async def _page(self, cursor: _Cursor, rate: float) -> tuple[_Cursor, int, bool]:
        """Copies the next page. Returns where it ended, its records, and whether there are more."""
        limit = min(PAGE_RECORDS, max(1, int(rate / 2))) if rate else PAGE_RECORDS
        exported: pb.ExportRecordsResponse = await self._source.ask(
            self._source.replication.ExportRecords,
            pb.ExportRecordsRequest(after=cursor.after, limit=limit),
            CALL_SECONDS,
        )
        if exported.records:
            request = pb.AdoptRecordsRequest(records=exported.records)
            await self._target.ask(self._target.replication.AdoptRecords, request, CALL_SECONDS)
            cursor = replace(cursor, after=exported.records[-1].key)
        elif exported.more:
            raise NoProgress(f"A says that there are records after {cursor.after!r}, but sends none")
        return cursor, len(exported.records), exported.more

    async def _total(self) -> int:
        status: Any = await self._source.ask(self._source.replication.GetStatus, pb.GetStatusRequest(), CALL_SECONDS)
        return int(status.records)

    async def _finish(self, progress: Progress, cursor: _Cursor) -> None:
        await self._save(
            replace(
                progress,
                running=False,
                note="finished",
                total=progress.done,
                cursor=replace(cursor, finished=True).encode(),
                finished_seconds=self._clock.now(),
            )
        )

    async def _still(self, order: Order) -> tuple[bool, Order]:
        """Whether to go on, looked up every half second, and the order as it is now."""
        now = self._clock.monotonic()
        if now < self._next_look and not self._told.is_set():
            return True, order
        self._told.clear()
        self._next_look = now + _CHECK_SECONDS
        held = await self._control.lease(LEASE, self._holder, LEASE_SECONDS)
        wanted, latest = await self._wanted()
        return held and wanted and latest.id == order.id, latest

    async def _wait_out(self, until: float) -> None:
        """Keeps the rate, unless something was told meanwhile."""
        left = until - self._clock.monotonic()
        if left > 0:
            await self._pause(left)

    async def _wanted(self) -> tuple[bool, Order]:
        wanted = await self._control.progress(WANTED)
        return (wanted.running, Order.decode(wanted.cursor)) if wanted else (False, Order())

    @staticmethod
    def _is_done(progress: Progress, order: Order) -> bool:
        cursor = _Cursor.decode(progress.cursor)
        return cursor.finished and cursor.id == order.id

    async def _load(self) -> Progress:
        self._progress = await self._control.progress(JOB) or Progress(JOB, False)
        return self._progress

    async def _save(self, progress: Progress) -> None:
        await self._control.save(progress)
        self._progress = progress

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            pass

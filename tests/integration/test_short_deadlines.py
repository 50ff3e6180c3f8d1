"""Callers with short deadlines, through a router: a deadline is its caller's choice and no fault of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import grpc

from libs.contract.pages import Page
from libs.ownership.model import Answered, Call, Changed, Decide, Found, Store
from libs.store.port import Listed, Records
from services.router.core.measure import total
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system
from tests.waiting import eventually

SLOW, QUICK = "shelf/r/slow", "shelf/r/quick"
DEADLINE_SECONDS = 0.14


class SlowRecords:
    """A store's calls: reads of some keys, and if wanted the next write or all pages, do not end before they are let
    go."""

    def __init__(self, records: Records, *slow: str) -> None:
        self._records = records
        self.slow = set(slow)
        self.go_on = asyncio.Event()
        self.hold_writes = False
        self.hold_pages = False
        self.held = 0

    async def read(self, key: str) -> Found:
        if key in self.slow:
            await self.go_on.wait()
        return await self._records.read(key)

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        return await self._records.read_many(keys)

    async def write(self, call: Call, decide: Decide) -> Changed | Answered:
        if self.hold_writes:
            self.hold_writes = False
            self.held += 1
            await self.go_on.wait()
        return await self._records.write(call, decide)

    async def page(self, page: Page) -> list[Listed]:
        if self.hold_pages:
            await self.go_on.wait()
        return await self._records.page(page)


async def look(system: System, path: str) -> None:
    """A read with a short deadline, however it ends."""
    call = system.client.multi_callable("/toy.Shelf/Look")
    with suppress(grpc.aio.AioRpcError):
        await call(pb.LookOrder(path=path).SerializeToString(), timeout=DEADLINE_SECONDS)


def faults(system: System) -> int:
    """Faults of A, as gates and automatic rollback count them."""
    return system.traffic.meter.recent(Store.A, asyncio.get_running_loop().time()).faults


async def test_short_deadlines_under_load_are_no_faults_of_a_store() -> None:
    async with running_system(feeds=False, mover=False) as system:
        records = SlowRecords(system.ports(Store.A).records, SLOW)
        system.ports(Store.A).records = records
        answered = asyncio.Event()

        async def load() -> None:
            while not answered.is_set():
                await look(system, QUICK)

        beside = asyncio.create_task(load())
        for _ in range(15):
            await look(system, SLOW)
        answered.set()
        records.go_on.set()
        await beside
        assert (faults(system), system.traffic.failures[Store.A]) == (0, 0)
        assert total(a for a, _ in system.traffic.meter.seconds(asyncio.get_running_loop().time())).calls


async def test_a_store_that_hangs_is_at_fault_also_for_short_deadlines() -> None:
    async with running_system(feeds=False, mover=False) as system:
        records = SlowRecords(system.ports(Store.A).records, SLOW, QUICK)
        system.ports(Store.A).records = records

        async def at_fault() -> bool:
            await look(system, QUICK)
            return faults(system) > 5

        await eventually(at_fault, what="a store that answers nothing is at fault")
        records.go_on.set()

"""A system of toy shelves in which reads are compared, and helpers of its tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from libs.ownership.model import Store
from services.router.core.phase import Phase
from services.router.flows.steering.migration import Decision
from tests.contracts.pb.toy import shelf_pb2 as pb
from tests.system.whole import System, running_system, step
from tests.waiting import eventually

BY_HAND = Decision("a test", "because", override=True)
KEY = "shelf/r/1"


@asynccontextmanager
async def shadowed(
    permille: int = 1000, *, phase: Phase = Phase.SHADOW, same: bool = False, **options: Any
) -> AsyncIterator[System]:
    """A system in which reads are compared."""
    async with running_system(**options) as system:
        while system.setting.current.phase is not phase:
            await step(system.migration, BY_HAND)
        await system.migration.set_shadow(BY_HAND, permille, same=same)
        await eventually(lambda: all(system.observer.view(store).lag_seconds == 0 for store in Store))
        yield system


async def send(system: System, method: str, request: Any) -> tuple[bytes, dict[str, str]]:
    call = system.client.multi_callable(f"/toy.Shelf/{method}")(request.SerializeToString(), timeout=5)
    return await call, {name: str(value) for name, value in await call.trailing_metadata() or ()}


async def put(system: System, isbn: str = "1") -> None:
    await send(system, "Put", pb.PutOrder(token=str(uuid4()), where=pb.Place(room="r", isbn=isbn)))


async def lend(system: System, reader: str) -> None:
    await send(system, "Lend", pb.LendOrder(path=KEY, reader=reader, token=str(uuid4())))


async def look(system: System, key: str = KEY) -> pb.Book:
    return pb.Book.FromString((await send(system, "Look", pb.LookOrder(path=key)))[0])


async def replicated(system: System, *keys: str) -> None:
    def same() -> bool:
        a, b = (system.ports(store)._state.rows for store in Store)
        return all(key in a and key in b and a[key].version == b[key].version for key in keys or (KEY,))

    await eventually(same, what="B has what A has")


def edit(system: System, store: Store, key: str = KEY, **changes: Any) -> None:
    """Change a row without the store, as another program would."""
    rows = system.ports(store)._state.rows
    rows[key] = replace(rows[key], **changes)


def book(reader: str, key: str = KEY) -> bytes:
    return pb.Book(path=key, reader=reader).SerializeToString()


async def decided(system: System, compared: int = 1) -> dict[str, int]:
    """The counts that are not 0, when so many comparisons are decided."""
    await eventually(lambda: system.shadow.counts.compared >= compared, what=f"{compared} compared: {system.shadow!r}")
    return {name: count for name, count in system.shadow.counts._asdict().items() if count}

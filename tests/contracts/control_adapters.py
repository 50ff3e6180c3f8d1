"""Control stores for the contract suites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from libs.clock import Clock
from services.router.control.info import Described
from services.router.control.memory import MemoryControlState, MemoryControlStore
from services.router.control.port import ControlStore, JobRecords, RememberedValues, Reports, Rollbacks
from services.router.control.postgres import PostgresControlStore
from services.router.control.sqlite import SqliteControlStore

KINDS = ("memory", "sqlite", "postgres")


class ReportingStore(ControlStore, RememberedValues, Reports, Rollbacks, JobRecords, Described, Protocol):
    """The protocols that every adapter implements."""


OpenControl = Callable[[Clock | None], AbstractAsyncContextManager[ReportingStore]]
"""Opens the same store once more, as another router does."""


def opener(kind: str, directory: Path, dsn: str) -> OpenControl:
    shared = MemoryControlState()

    @asynccontextmanager
    async def opened(clock: Clock | None) -> AsyncIterator[ReportingStore]:
        if kind == "memory":
            yield MemoryControlStore(shared, clock=clock)
        elif kind == "sqlite":
            async with SqliteControlStore.open(directory / "control.db", clock=clock) as store:
                yield store
        else:
            async with PostgresControlStore.open(dsn, clock=clock) as postgres:
                yield postgres

    return opened

"""Stores for the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest

from libs.clock import ManualClock
from libs.store.limits import OutboxLimits
from libs.store.port import StorePorts
from tests.contracts.control_adapters import KINDS, OpenControl, ReportingStore, opener
from tests.contracts.store_adapters import ADAPTERS, MEMORY_A, MEMORY_B, Adapter, Place, open_adapter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write what the memory store answers into golden/")


class MakeStore(Protocol):
    def __call__(self, limits: OutboxLimits | None = None) -> AbstractAsyncContextManager[StorePorts]: ...


@pytest.fixture(params=ADAPTERS, ids=str)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    adapter: Adapter = request.param
    return adapter


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_store(adapter: Adapter, clock: ManualClock, tmp_path: Path, request: pytest.FixtureRequest) -> MakeStore:
    """Opens the adapter's store, always the same one, so that it can be closed and opened again."""
    dsn = request.getfixturevalue("store_dsn") if adapter.postgres else ""

    def make(limits: OutboxLimits | None = None) -> AbstractAsyncContextManager[StorePorts]:
        return open_adapter(adapter, Place(tmp_path / "store.db", dsn, clock, limits or OutboxLimits()))

    return make


@pytest.fixture
async def store(make_store: MakeStore) -> AsyncIterator[StorePorts]:
    async with make_store() as store:
        yield store


@pytest.fixture
async def across(adapter: Adapter, clock: ManualClock, tmp_path: Path) -> AsyncIterator[StorePorts]:
    """The other store, in memory."""
    other = MEMORY_A if adapter.store is MEMORY_B.store else MEMORY_B
    async with open_adapter(other, Place(tmp_path, "", clock, OutboxLimits())) as store:
        yield store


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite-golden", default=False))


@pytest.fixture(params=KINDS)
def open_control(request: pytest.FixtureRequest, tmp_path: Path) -> OpenControl:
    dsn = request.getfixturevalue("postgres_dsn") if request.param == "postgres" else ""
    return opener(request.param, tmp_path, dsn)


@pytest.fixture
async def control(open_control: OpenControl) -> AsyncIterator[ReportingStore]:
    async with open_control(None) as store:
        yield store

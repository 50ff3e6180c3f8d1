"""Fails a test that leaves asyncio tasks or child processes behind. tests/conftest.py activates it."""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from libs.proving.servers import tree
from libs.proving.servers.process import ServerProcess, watchdog_pid
from tests import forks

# Time for work that is already ending, such as a closing connection or a stopping process.
_GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.01

SESSION_SERVERS: list[ServerProcess] = []
"""Servers that outlive a test on purpose."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the task check around all other fixtures of each async test: set up first, torn down last."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(inspect.unwrap(item.obj)):
        item.fixturenames.insert(0, "no_task_is_left")


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail if tasks remain that the test or its fixtures started."""
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := _others(before):
        if time.monotonic() > deadline:
            pytest.fail(f"the test left {len(left)} asyncio task(s) behind: {left}")
        await asyncio.sleep(_POLL_SECONDS)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail if child processes remain that the test or its fixtures started, and kill them."""
    before = tree.pids()
    yield
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := [child for child in _children_beside(before) if not _expected(child.pid)]:
        if time.monotonic() > deadline:
            for child in left:
                child.send(9)
            pytest.fail(f"the test left child processes behind, now killed: {[child.pid for child in left]}")
        time.sleep(_POLL_SECONDS)


def _children_beside(pids: set[int]) -> list[tree.Process]:
    new = tree.pids() - pids
    forked = [] if (server := forks.server_pid()) is None else tree.children(server, new)
    return tree.children(os.getpid(), new) + forked


def _others(before: set["asyncio.Task[object]"]) -> list["asyncio.Task[object]"]:
    return [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task() and not task.done()]


def _expected(pid: int) -> bool:
    return pid in (watchdog_pid(), forks.server_pid()) or any(server.pid == pid for server in SESSION_SERVERS)

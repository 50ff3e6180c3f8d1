"""Task groups for a trial, which ends with the first failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def first_failure() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure instead of an exception group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


@asynccontextmanager
async def beside(*bodies: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these coroutines during the block, and cancel them at its end. A failure of one ends the block."""
    async with first_failure() as group:
        tasks = [group.create_task(body) for body in bodies]
        yield
        for task in tasks:
            task.cancel()

"""A log that is opened by the first successful call, so that a process can start without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from libs.eventlog.address import LogAddress, log_name, open_event_log
from libs.eventlog.port import Event, EventLog, LogReader, LogUnavailable, Retention


class LazyEventLog:
    """An `EventLog`. Each call may raise TopicUnfit, once the topic can be checked."""

    def __init__(self, address: LogAddress) -> None:
        self._address = address
        self._log: EventLog | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<LazyEventLog {self._log or 'not open yet'!r}>"

    @property
    def partitions(self) -> int:
        return self._address.partitions

    @property
    def name(self) -> str:
        return log_name(self._address.url)

    @property
    def id(self) -> str:
        return "" if self._log is None else self._log.id

    @property
    def retention(self) -> Retention:
        return Retention() if self._log is None else self._log.retention

    async def get(self) -> EventLog:
        """The open log. Raises LogUnavailable, TopicUnfit."""
        async with self._opening:
            if self._log is None:
                self._log = await self._stack.enter_async_context(open_event_log(self._address))
            return self._log

    async def try_open(self, timeout_seconds: float) -> str:
        """Open the log. Returns why it is unavailable, or "". Raises TopicUnfit."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.get()
        except TimeoutError:
            return f"no answer within {timeout_seconds:g} s"
        except LogUnavailable as error:
            return str(error)
        return ""

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        await (await self.get()).append(events, partition)

    @asynccontextmanager
    async def reader(self, positions: Mapping[int, int]) -> AsyncIterator[LogReader]:
        log = await self.get()
        async with log.reader(positions) as reader:
            yield reader

    async def ends(self) -> dict[int, tuple[int, int]]:
        return await (await self.get()).ends()

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        return await (await self.get()).offsets_at(time_seconds)

    async def close(self) -> None:
        await self._stack.aclose()

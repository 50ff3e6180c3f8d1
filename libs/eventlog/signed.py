"""A log to which every event is appended with its code, so that no message of this process is without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from libs.eventlog.codes import Codes
from libs.eventlog.port import Event, EventLog, LogReader, Retention


class SignedLog:
    """An `EventLog` over another one, which its owner closes."""

    def __init__(self, log: EventLog, codes: Codes) -> None:
        self._log = log
        self._codes = codes

    def __repr__(self) -> str:
        return f"<SignedLog {self._log!r} {self._codes!r}>"

    @property
    def partitions(self) -> int:
        return self._log.partitions

    @property
    def name(self) -> str:
        return self._log.name

    @property
    def id(self) -> str:
        return self._log.id

    @property
    def retention(self) -> Retention:
        return self._log.retention

    async def append(self, events: Sequence[Event], partition: int | None = None) -> None:
        await self._log.append([self._codes.sign(event) for event in events], partition)

    def reader(self, positions: Mapping[int, int]) -> AbstractAsyncContextManager[LogReader]:
        return self._log.reader(positions)

    async def ends(self) -> dict[int, tuple[int, int]]:
        return await self._log.ends()

    async def offsets_at(self, time_seconds: float) -> dict[int, int]:
        return await self._log.offsets_at(time_seconds)

    async def close(self) -> None:
        await self._log.close()

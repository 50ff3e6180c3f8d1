"""The port of the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from libs.ownership.model import Version


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """A change that is not in the log yet."""

    key: str
    version: Version
    event: bytes
    traceparent: str = ""


class Depth(NamedTuple):
    """Of the outbox. The oldest entry's age in seconds, by the store's ticks."""

    entries: int
    bytes: int
    oldest_seconds: float


class Outbox(Protocol):
    """Changes on their way to the log."""

    async def pull(self, limit: int, wait_seconds: float) -> list[ChangeEntry]:
        """The oldest entries, at most `limit` and about 1 MiB; waits for a first one. They stay until acknowledged, so
        an entry that commits late is pulled late, never missed. Changes of one key come in the order of versions."""
        ...

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        """Removes exactly these. Returns how many were there."""
        ...

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        """Those of these that are still here, so not acknowledged."""
        ...

    async def depth(self) -> Depth:
        """May be up to two seconds old."""
        ...

"""The port of the outbox."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from libs.ownership.model import Version


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """A change that is not in the log yet."""

    key: str
    version: Version
    event: bytes = field(repr=False)
    traceparent: str = ""


class Depth(NamedTuple):
    """Size of the outbox, and the age of its oldest entry in seconds, by the store's ticks."""

    entries: int
    bytes: int
    oldest_seconds: float


class Outbox(Protocol):
    """Changes that the log does not have yet."""

    async def pull(
        self, limit: int, wait_seconds: float, without: Collection[tuple[str, Version]] = ()
    ) -> list[ChangeEntry]:
        """Return the oldest entries, at most `limit` and about 1 MiB. If there are none, wait for a first one, at most
        `wait_seconds`. `without`: changes to leave out, because they are being acknowledged.

        Entries stay until they are acknowledged, so an entry that commits late is pulled late, never missed. Changes of
        one key come in the order of their versions.
        """
        ...

    async def ack(self, changes: Sequence[tuple[str, Version]]) -> int:
        """Remove exactly these changes. Return how many were in the outbox."""
        ...

    async def unlogged(self, changes: Sequence[tuple[str, Version]]) -> set[tuple[str, Version]]:
        """Return those of these changes that are not acknowledged: they are in the outbox or set aside."""
        ...

    async def depth(self) -> Depth:
        """Return the depth, which may be up to two seconds old."""
        ...

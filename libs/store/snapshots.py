"""Snapshots of a whole store: its contents at one moment, readable while the store serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.contract.audits import Finding
from libs.errors import BatonError
from libs.ownership.model import Row


class SnapshotGone(BatonError):
    """The snapshot does not exist any more: take another one and start again."""

    code = "NOT_FOUND"
    reason = "SNAPSHOT_GONE"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a snapshot's copy."""

    ready: bool
    copied_bytes: int
    total_bytes: int
    taken_seconds: float = 0.0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Looked:
    """One record of a snapshot, with its findings. `row` is None if its envelope cannot be decoded."""

    key: str
    row: Row | None
    findings: tuple[Finding, ...]


class Snapshots(Protocol):
    """Snapshots of one store, one at a time. A snapshot ends with its process."""

    async def take(self, snapshot: str) -> Progress:
        """Begin the snapshot of this id, or report its progress; wait a moment for its end. Another snapshot is
        removed.

        Raises DiskFull, with nothing left behind, and the errors of reading the store. After an error, the next call
        begins again.
        """
        ...

    async def page(self, snapshot: str, after: str, limit: int) -> list[Looked]:
        """Return the records after this key, by key, at most `limit`. Raises SnapshotGone, StoreUnavailable."""
        ...

    async def drop(self, snapshot: str) -> None:
        """Remove the snapshot, if it exists."""
        ...

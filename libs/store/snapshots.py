"""Snapshots of a whole store: what it held at one moment, readable while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.contract.audits import Finding
from libs.errors import BatonError
from libs.ownership.model import Row


class SnapshotGone(BatonError):
    """The snapshot is not there any more: take another one and begin anew."""

    code = "NOT_FOUND"
    reason = "SNAPSHOT_GONE"


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a copy."""

    ready: bool
    copied_bytes: int
    total_bytes: int
    taken_seconds: float = 0.0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Looked:
    """One record of a snapshot. No row: not even its envelope makes sense."""

    key: str
    row: Row | None
    findings: tuple[Finding, ...]


class Snapshots(Protocol):
    """Of one store, one at a time. None outlives its process."""

    async def take(self, snapshot: str) -> Progress:
        """Begins the snapshot of this id, or tells how far it is; waits a moment for its end. Another one is removed.

        Raises DiskFull with nothing left behind, and what reading the store raises; whoever asks again begins again."""
        ...

    async def page(self, snapshot: str, after: str, limit: int) -> list[Looked]:
        """The records after this key, at most so many, by key. Raises SnapshotGone, StoreUnavailable."""
        ...

    async def drop(self, snapshot: str) -> None:
        """Removes it; one that is not there is removed already."""
        ...

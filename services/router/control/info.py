"""Facts about a control store, for `baton doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ControlInfo:
    kind: str
    """ "memory", "sqlite" or "postgresql"."""
    where: str
    """File or server, without secrets."""
    server_id: str = ""
    """PostgreSQL's system identifier. If it equals B's, both are on one server."""
    id: str = ""
    """Random id, made with the control store. By it, a store recognises orders of another control store."""


class Described(Protocol):
    async def info(self) -> ControlInfo:
        """Raises ControlUnavailable."""
        ...

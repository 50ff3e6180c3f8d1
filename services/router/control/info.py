"""What a control store is, for the doctor."""

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
    """PostgreSQL's system identifier: equal to B's means that both live on one server."""
    id: str = ""
    """Made with the store: orders of another control store are recognised by it."""


class Described(Protocol):
    async def info(self) -> ControlInfo:
        """Raises ControlUnavailable."""
        ...

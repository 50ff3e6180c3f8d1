"""Showing of secrets to an operator: each time, the journal gets the actor and the reason first."""

from __future__ import annotations

from libs.errors import InvalidField
from services.router.flows.steering.migration import Decision, Migration

REVEALED = "secrets shown"
"""The action in the journal."""


class Reveals:
    """Records in the journal that secrets were shown, with the reason."""

    def __init__(self, migration: Migration) -> None:
        self._migration = migration

    async def note(self, actor: str, reason: str, subject: str) -> None:
        """Raises InvalidField, ControlUnavailable, Outdated: then no secret may be shown."""
        if not reason.strip():
            raise InvalidField("reason", reason, "the reason for showing secrets; the journal keeps it")
        await self._migration.note(Decision(actor, f"{reason} ({subject})"), REVEALED)

"""Clients that still call the old service directly. Every router reads them; the control store keeps them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from libs.clock import Clock
from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.control.port import RememberedValues
from services.router.core.clients import DirectClients, ProcessReport, from_json, looked
from services.router.core.gates import Evidence
from services.router.flows.stores import StoreViews

NAME = "direct clients"
"""The name of the value in the control store."""

INTERVAL_SECONDS = 5.0


class ClientWatch:
    """The check for direct clients. Several routers may run it at once, since each finds the same."""

    def __init__(self, views: StoreViews, values: RememberedValues, clock: Clock) -> None:
        self._views = views
        self._values = values
        self._clock = clock
        self._known: DirectClients | None = None
        self._seen_at: float | None = None
        """Monotonic time of A's last report that was saved."""
        self.loop = Loop("direct clients", self._body)

    @property
    def known(self) -> DirectClients | None:
        """None before the first look."""
        return self._known

    async def look(self) -> None:
        """Read A's report and save it. If it raises ControlUnavailable, the last result stays."""
        view = self._views.view(Store.A)
        status = view.fresh(self._clock.monotonic())
        text = await self._values.remembered(NAME)
        before = from_json(text) if text is not None else None
        # A process of an earlier release has no id, so its uptime cannot be told from that of the next one.
        if status is None or view.seen_at is None or not status.vitals.start_id:
            self._known = before
            return
        # The most recent caller comes first.
        last = next(((client.name, client.idle_seconds) for client in status.clients), None)
        look = ProcessReport(status.vitals.start_id, status.vitals.uptime_seconds, last)
        unseen = None if self._seen_at is None else view.seen_at - self._seen_at
        self._known = looked(before, look, unseen)
        await self._values.remember(NAME, self._known.to_json())
        self._seen_at = view.seen_at

    def evidence(self, evidence: Evidence) -> Evidence:
        """Add A's direct clients to the evidence."""
        known = self._known
        if known is None:
            return evidence
        return replace(
            evidence,
            clients_watched_seconds=known.watched_seconds,
            client_idle_seconds=known.idle_seconds,
            client_name=known.name,
        )

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

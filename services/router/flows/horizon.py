"""Watches that the log does not drop what a store has not read (`services.router.core.horizon`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from libs.clock import Age, Clock
from libs.eventlog.port import EventLog
from libs.ownership.model import Store
from libs.rpc.tasks import Loop
from services.router.core.evidence import Evidence
from services.router.core.horizon import KEPT_SHARE, Held, Risk, risk_of
from services.router.flows.observe import StoreView

INTERVAL_SECONDS = 30.0
_EPOCH = 0.0
"""Its age is the time of now."""


class Views(Protocol):
    """What is known of the stores."""

    def view(self, store: Store) -> StoreView: ...


class HorizonWatch:
    """Asks the log now and then; where the stores stand is known from their last answers, however old. So a store that
    is down for days is watched too, if this router has ever heard of it."""

    def __init__(self, views: Views, log: EventLog, clock: Clock) -> None:
        self._views = views
        self._log = log
        self._now = Age(clock)
        self._now.seconds(_EPOCH)
        self._held: Mapping[int, Held] | None = None
        self.loop = Loop("horizon", self._body, longest_pause_seconds=INTERVAL_SECONDS)

    def evidence(self, seen: Evidence) -> Evidence:
        """With what is at risk now; without, if the log was never in reach."""
        return seen if self._held is None else replace(seen, risks=tuple(self._risks(self._held)))

    async def look(self) -> None:
        """Raises LogUnavailable, TopicUnfit; what was known stays."""
        ends = await self._log.ends()  # First, since a log that was not open yet does not know its retention.
        seconds, by_size = self._log.retention
        aged = {} if seconds is None else await self._log.offsets_at(self._now.seconds(_EPOCH) - KEPT_SHARE * seconds)
        self._held = {
            partition: Held(oldest, end, aged.get(partition, oldest), by_size)
            for partition, (oldest, end) in ends.items()
        }

    def _risks(self, held: Mapping[int, Held]) -> list[Risk]:
        statuses = [(store, self._views.view(store).status) for store in Store]
        return [
            risk_of(store.value, dict(status.feed.next_offsets), held)
            for store, status in statuses
            if status is not None
        ]

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

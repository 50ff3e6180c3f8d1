"""Automatic rollback: one router decides every second, by the measurements of all routers.

The lease in the control store chooses that router. The control store also keeps the last automatic rollback, written
together with the change, and the time that routers have watched since. So a router that dies, or two routers that
decide for a moment, make no second rollback. No wall clock takes part: the pause is counted by the monotonic clock of
the deciding router, and it stands still while no router runs.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

from libs.clock import Clock
from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.control.port import ControlStore, JournalEntry, LastRollback, Rollbacks
from services.router.core.automatic_rollback import PAUSE, Action, Observation, Outcome, decide
from services.router.core.measure import SECONDS
from services.router.core.phase import IllegalMove, Outdated, Setting
from services.router.core.thresholds import Limits
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.migration import Migration
from services.router.flows.stores import StoreViews

log = logging.getLogger(__name__)

LEASE_NAME = "judge"
"""The lease's name in the control store. Routers of every release must use the same one."""
LEASE_SECONDS = 5.0
INTERVAL_SECONDS = 1.0


class Control(ControlStore, Rollbacks, Protocol):
    """The parts of the control store that automatic rollback needs."""


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...


class AutomaticRollback:
    def __init__(
        self,
        control: Control,
        migration: Migration,
        measurement: Measurement,
        steering: Steering,
        views: StoreViews,
        clock: Clock,
        holder: str,
        limits: Limits,
    ) -> None:
        """`holder`: the holder of the lease, this router's name. `limits`: this router's settings."""
        self._control = control
        self._migration = migration
        self._measurement = measurement
        self._steering = steering
        self._views = views
        self._clock = clock
        self._holder = holder
        self._limits = limits
        self._held: bool | None = None
        self._lifted_at = -float(SECONDS)
        self._known_of: int | None = None
        """The generation for which `_last` is known; None: read it."""
        self._last: LastRollback | None = None
        self._looked_at: float | None = None
        """The last look with the lease; None: another router has held it since."""
        self.view = "no measurement was read yet"
        """The assessment, in words."""
        self.alarm = ""
        """Why an operator must act now; empty while all is well."""
        self.alarms = 0
        """Number of alarms, rollbacks included."""
        self.loop = Loop("automatic-rollback", self._body, first_pause_seconds=0.2, longest_pause_seconds=1.0)

    def __repr__(self) -> str:
        return f"<AutomaticRollback {self.view!r} alarm={self.alarm!r}>"

    @property
    def last(self) -> JournalEntry | None:
        """The last automatic rollback, by any router."""
        return None if self._last is None else self._last.entry

    async def look(self) -> Outcome | None:
        """Decide once, and act. Returns None if another router holds the lease. Raises ControlUnavailable."""
        setting = self._steering.current
        await self._read_last(setting)
        self._note_hold(setting)
        limits = self._limits.overlaid(setting.limits)
        if not await self._control.lease(LEASE_NAME, self._holder, LEASE_SECONDS):
            self._looked_at = None
            # Its status shows the alarm too; the router that decides counts and logs it.
            self.view, self.alarm = "another router decides", _alarm(self._decide(setting, limits))
            return None
        await self._count_pause(setting, limits[PAUSE])
        outcome = self._decide(setting, limits)
        self.view = outcome.reason
        if outcome.action is Action.ROLL_BACK:
            await self._roll_back(setting, outcome.reason)
        else:
            self._sound(_alarm(outcome))
        return outcome

    async def _roll_back(self, setting: Setting, reason: str) -> None:
        try:
            await self._migration.roll_back_automatically(setting.generation, reason)
        except (Outdated, IllegalMove):
            # The setting has changed meanwhile: the next look decides on the new one.
            return
        self.alarms += 1
        log.error("automatic rollback: all traffic goes to A until the hold is lifted: %s", reason)
        # The status that shows the hold also shows why, not only after the next look.
        await self._read_last(self._steering.current)

    def _sound(self, alarm: str) -> None:
        """Logs an alarm once, not every second with other figures."""
        if alarm and not self.alarm:
            self.alarms += 1
            log.error("no automatic rollback, an operator must act: %s", alarm)
        elif self.alarm and not alarm:
            log.info("the alarm is over: %s", self.view)
        self.alarm = alarm

    def _decide(self, setting: Setting, limits: Limits) -> Outcome:
        return decide(self._seen(setting), limits)

    def _seen(self, setting: Setting) -> Observation:
        a = self._views.view(Store.A)
        # Faults before the hold was lifted do not count again.
        since = int(min(self._clock.monotonic() - self._lifted_at, SECONDS))
        return Observation(
            setting=setting,
            seconds=self._measurement.seconds()[:since],
            a_serves=a.reachable and a.status is not None and a.status.serving,
            last_seconds_ago=None if self._last is None else self._last.watched_seconds,
        )

    def _note_hold(self, setting: Setting) -> None:
        """Remembers when a hold was lifted. A router that saw no hold counts all reports."""
        if self._held and not setting.hold:
            self._lifted_at = self._clock.monotonic()
        self._held = setting.hold

    async def _read_last(self, setting: Setting) -> None:
        if self._known_of != setting.generation:
            self._last = await self._control.last_rollback()
            self._known_of = setting.generation

    async def _count_pause(self, setting: Setting, pause_seconds: float) -> None:
        """Adds the time since the last look to the pause, at most LEASE_SECONDS: this router may have stood still."""
        now, before = self._clock.monotonic(), self._looked_at
        self._looked_at = now
        if before is None:
            # Another router has counted meanwhile.
            self._known_of = None
            await self._read_last(setting)
            return
        last = self._last
        if last is None or last.watched_seconds >= pause_seconds:
            return
        elapsed = min(now - before, LEASE_SECONDS)
        await self._control.watched(last.entry.after.generation, elapsed)
        self._last = replace(last, watched_seconds=last.watched_seconds + elapsed)

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)


def _alarm(outcome: Outcome) -> str:
    """Why an operator must act; "" if none must."""
    return outcome.reason if outcome.action is Action.ALERT else ""

"""Automatic rollback: one router decides every second, by what all have measured.

The control store keeps the last automatic rollback, written with the change, and how long a router has watched since.
So neither a judge that dies nor two judges for a moment make a second one, and no wall clock delays the next one: the
pause is counted in seconds of the judge's monotonic clock. While no router runs it stands still.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Protocol

from libs.clock import Clock
from libs.ownership.model import Store
from libs.tasks import Loop
from services.router.control.port import ControlStore, JournalEntry, LastRollback, Rollbacks
from services.router.core.automatic_rollback import PAUSE, Action, Outcome, Seen, decide
from services.router.core.measure import SECONDS
from services.router.core.phase import IllegalMove, Outdated, Setting
from services.router.core.thresholds import Limits
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.migration import Migration
from services.router.flows.stores import StoreViews

log = logging.getLogger(__name__)

LEASE_NAME = "judge"
LEASE_SECONDS = 5.0
INTERVAL_SECONDS = 1.0


class Control(ControlStore, Rollbacks, Protocol):
    """The parts of the control store that a judge needs."""


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...


@dataclass(frozen=True, slots=True)
class Bench:
    """What a judge looks at, acts by, and is bound by."""

    control: Control
    migration: Migration
    measurement: Measurement
    steering: Steering
    views: StoreViews
    clock: Clock
    holder: str
    """Of the lease: this router's name."""
    limits: Limits = field(default_factory=Limits)


class Judge:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._held: bool | None = None
        self._lifted_at = -float(SECONDS)
        self._known_of: int | None = None
        """The generation for which `_last` is known; None: read it."""
        self._last: LastRollback | None = None
        self._looked_at: float | None = None
        """When this router last looked as the judge; None: another one did since."""
        self.view = "nothing was looked at yet"
        """What it sees, in words."""
        self.alarm = ""
        """Why a person must look now; "" when there is no need."""
        self.alarms = 0
        """How often a person was called, rollbacks included."""
        self.loop = Loop("judge", self._body, first_pause_seconds=0.2, longest_pause_seconds=1.0)

    def __repr__(self) -> str:
        return f"<Judge {self.view!r} alarm={self.alarm!r}>"

    @property
    def last(self) -> JournalEntry | None:
        """The last automatic rollback, by any router."""
        return None if self._last is None else self._last.entry

    async def look(self) -> Outcome | None:
        """One look, and what follows from it; None when another router judges. Raises ControlUnavailable."""
        bench = self._bench
        setting = bench.steering.current
        await self._read_last(setting)
        self._note_hold(setting)
        if not await bench.control.lease(LEASE_NAME, bench.holder, LEASE_SECONDS):
            self._looked_at = None
            self.view, self.alarm = "another router judges", ""
            return None
        await self._watch(setting)
        outcome = decide(self._seen(setting), bench.limits.overlaid(setting.limits))
        self.view = outcome.reason
        if outcome.action is Action.ROLL_BACK:
            await self._roll_back(setting, outcome.reason)
        else:
            self._sound(outcome.reason if outcome.action is Action.ALERT else "")
        return outcome

    async def _roll_back(self, setting: Setting, reason: str) -> None:
        try:
            await self._bench.migration.roll_back_automatically(setting.generation, reason)
        except (Outdated, IllegalMove):
            # Somebody has changed the setting meanwhile: the next look judges that one.
            return
        self.alarms += 1
        log.error("automatic rollback: all traffic goes to A until the hold is lifted: %s", reason)
        # The status that shows the hold also shows why, not only after the next look.
        await self._read_last(self._bench.steering.current)

    def _sound(self, alarm: str) -> None:
        """Says it once, not every second with other figures."""
        if alarm and not self.alarm:
            self.alarms += 1
            log.error("automatic rollback is not made, a person must look: %s", alarm)
        elif self.alarm and not alarm:
            log.info("the alarm is over: %s", self.view)
        self.alarm = alarm

    def _seen(self, setting: Setting) -> Seen:
        bench = self._bench
        a = bench.views.view(Store.A)
        # What was before the hold was lifted is not held against B again.
        since = int(min(bench.clock.monotonic() - self._lifted_at, SECONDS))
        return Seen(
            setting=setting,
            seconds=bench.measurement.seconds()[:since],
            a_serves=a.reachable and a.status is not None and a.status.serving,
            last_seconds_ago=None if self._last is None else self._last.watched_seconds,
        )

    def _note_hold(self, setting: Setting) -> None:
        """A judge that has seen no hold counts all that was reported."""
        if self._held and not setting.hold:
            self._lifted_at = self._bench.clock.monotonic()
        self._held = setting.hold

    async def _read_last(self, setting: Setting) -> None:
        if self._known_of != setting.generation:
            self._last = await self._bench.control.last_rollback()
            self._known_of = setting.generation

    async def _watch(self, setting: Setting) -> None:
        """Counts the pause since the last automatic rollback. What went by while this router stood still is cut."""
        now, before = self._bench.clock.monotonic(), self._looked_at
        self._looked_at = now
        if before is None:
            # Another router has counted meanwhile.
            self._known_of = None
            await self._read_last(setting)
            return
        last = self._last
        pause_seconds = self._bench.limits.overlaid(setting.limits)[PAUSE]
        if last is None or last.watched_seconds >= pause_seconds:
            return
        elapsed = min(now - before, LEASE_SECONDS)
        await self._bench.control.watched(last.entry.after.generation, elapsed)
        self._last = replace(last, watched_seconds=last.watched_seconds + elapsed)

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

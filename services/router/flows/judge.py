"""Automatic rollback: one router of all looks every second at what all have measured, and acts on `core.judge`.

The journal, which is written with the change, is what remembers an automatic rollback. So neither a judge that dies nor
two judges for a moment make a second one.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Protocol

from libs.clock import Clock
from libs.ownership.model import Store
from libs.rpc.tasks import Loop
from services.router.control.port import ControlStore, JournalEntry
from services.router.core.judge import RollbackLimits, Ruling, Seen, Verdict, decide
from services.router.core.limits import rollback_limits
from services.router.core.measure import SECONDS
from services.router.core.phase import IllegalMove, Outdated, Setting
from services.router.flows.measure import Measurement
from services.router.flows.migration import AUTOMATIC, Migration
from services.router.flows.observe import StoreView

log = logging.getLogger(__name__)

LEASE_NAME = "judge"
LEASE_SECONDS = 5.0
INTERVAL_SECONDS = 1.0

_JOURNAL_ENTRIES = 1000


class Views(Protocol):
    """What is known of the stores."""

    def view(self, store: Store) -> StoreView: ...


class Steering(Protocol):
    @property
    def current(self) -> Setting: ...


@dataclass(frozen=True, slots=True)
class Bench:
    """What a judge looks at, acts by, and is bound by."""

    control: ControlStore
    migration: Migration
    measurement: Measurement
    steering: Steering
    views: Views
    clock: Clock
    holder: str
    """Of the lease: this router's name."""
    limits: RollbackLimits = field(default_factory=RollbackLimits)


class Judge:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._held: bool | None = None
        self._lifted_at = -float(SECONDS)
        self._journal_of: int | None = None
        self.last: JournalEntry | None = None
        """The last automatic rollback, by whichever router."""
        self.view = "nothing was looked at yet"
        """What it sees, in words."""
        self.alarm = ""
        """Why a person must look now; "" when there is no need."""
        self.alarms = 0
        """How often a person was called, rollbacks included."""
        self.loop = Loop("judge", self._body, first_pause_seconds=0.2, longest_pause_seconds=1.0)

    def __repr__(self) -> str:
        return f"<Judge {self.view!r} alarm={self.alarm!r}>"

    async def look(self) -> Verdict | None:
        """One look, and what follows from it; None when another router judges. Raises ControlUnavailable."""
        bench = self._bench
        setting = bench.steering.current
        await self._read_journal(setting)
        self._note_hold(setting)
        if not await bench.control.lease(LEASE_NAME, bench.holder, LEASE_SECONDS):
            self.view, self.alarm = "another router judges", ""
            return None
        verdict = decide(self._seen(setting), rollback_limits(bench.limits, setting.limits))
        self.view = verdict.reason
        if verdict.ruling is Ruling.ROLL_BACK:
            await self._roll_back(setting, verdict.reason)
        else:
            self._sound(verdict.reason if verdict.ruling is Ruling.CALL_A_PERSON else "")
        return verdict

    async def _roll_back(self, setting: Setting, reason: str) -> None:
        try:
            await self._bench.migration.roll_back_automatically(setting.generation, reason)
        except (Outdated, IllegalMove):
            # Somebody has changed the setting meanwhile: the next look judges that one.
            return
        self.alarms += 1
        log.error("automatic rollback: all traffic goes to A until the hold is lifted: %s", reason)
        await self._read_journal(self._bench.steering.current)

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
        ago = None if self.last is None else max(0.0, bench.clock.now() - self.last.time_seconds)
        # What was before the hold was lifted is not held against B again.
        since = int(min(bench.clock.monotonic() - self._lifted_at, SECONDS))
        return Seen(
            setting=setting,
            seconds=bench.measurement.seconds()[:since],
            a_serves=a.reachable and a.status is not None and a.status.serving,
            last_seconds_ago=ago,
        )

    def _note_hold(self, setting: Setting) -> None:
        """A judge that has seen no hold counts all that was reported."""
        if self._held and not setting.hold:
            self._lifted_at = self._bench.clock.monotonic()
        self._held = setting.hold

    async def _read_journal(self, setting: Setting) -> None:
        if self._journal_of == setting.generation:
            return
        for entry in await self._bench.control.journal(_JOURNAL_ENTRIES):
            if entry.action == AUTOMATIC:
                self.last = entry
                break
        self._journal_of = setting.generation

    async def _body(self, loop: Loop) -> None:
        await self.look()
        loop.well()
        await asyncio.sleep(INTERVAL_SECONDS)

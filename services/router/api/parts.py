"""The flows that the control API calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.clock import Clock
from services.router.core.phase import Phase
from services.router.core.thresholds import Limits
from services.router.flows.calls.explain import Explainer
from services.router.flows.calls.ledger import Auditor
from services.router.flows.calls.shadow import Shadow
from services.router.flows.feed.conflicts import Conflicts
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.parked import ParkedEvents
from services.router.flows.feed.repair import RecordRepair
from services.router.flows.jobs.rehearsal import Rehearsals
from services.router.flows.jobs.restart_events import RestartEvents
from services.router.flows.jobs.runner import Jobs
from services.router.flows.moving.mover import Handover
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.diagnose import Surroundings
from services.router.flows.steering.flags import Switches
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.steering.phase_since import PhaseSince
from services.router.flows.steering.probe import Probe
from services.router.flows.traffic import Traffic


class MoverView(Protocol):
    """What the mover tells of itself."""

    @property
    def progress(self) -> Handover: ...

    @property
    def buckets_to_b(self) -> int:
        """Whose target is B now."""
        ...

    @property
    def buckets_at_b(self) -> int | None:
        """Of which A owns neither a row nor the absence; None: not known."""
        ...

    @property
    def measured_rate(self) -> float:
        """Records per second of the last pass that moved something; 0: never."""
        ...

    @property
    def settled(self) -> bool:
        """Each bucket is where the setting wants it."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The flows behind the API."""

    migration: Migration
    cache: SettingCache
    observer: Observer
    traffic: Traffic
    mover: MoverView
    jobs: Jobs
    around: Surroundings
    switches: Switches
    explainer: Explainer
    rehearsals: Rehearsals
    shadow: Shadow
    measurement: Measurement
    automatic_rollback: AutomaticRollback
    auditor: Auditor
    logged_phases: frozenset[Phase]
    """In which a write is answered only when its event is in the log."""
    clock: Clock
    events: LogEvents
    parked: ParkedEvents
    restart: RestartEvents
    conflicts: Conflicts
    repair: RecordRepair
    phase_since: PhaseSince
    probe: Probe
    usual_limits: Limits
    """Of gates and of automatic rollback, by this router's own settings."""

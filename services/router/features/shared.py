"""A feature, and the flows that the features of a router share.

To add a feature: write a function that takes the shared flows and returns a `Feature`, in a module of this package,
and add it to the list `FEATURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from libs.clock import Clock
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.clients import Clients
from libs.rpc.server import TypedService
from libs.tasks import Loop
from services.router.api.approvals import ApprovalMethods
from services.router.api.control import PhaseMethods, control_service
from services.router.api.jobs import JobMethods
from services.router.api.status import MoverView, StatusMethods
from services.router.core.gates import Evidence
from services.router.core.measure import Meter, ShadowCounts
from services.router.core.phase import Setting
from services.router.features.connections import Connections
from services.router.flows.calls.shadow import Shadow
from services.router.flows.calls.write_auditor import Auditor
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.jobs.kind import JobKind
from services.router.flows.jobs.runner import Jobs
from services.router.flows.moving.transfer import Transfer
from services.router.flows.steering.direct_routes import DirectRoutes
from services.router.flows.steering.measure import Measurement, Sources
from services.router.flows.steering.migration import Migration
from services.router.flows.steering.observe import Observer, SettingCache
from services.router.flows.steering.report import Identity, old_clients
from services.router.flows.steering.under_way import under_way
from services.router.flows.traffic import Traffic
from services.router.settings import RouterSettings


def _unchanged(evidence: Evidence) -> Evidence:
    return evidence


def _add_nothing(answer: pb.GetStatusResponse) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A feature's additions to a router. Its metrics are gauges on `Connections.meter`."""

    loops: Sequence[Loop] = ()
    kinds: Sequence[JobKind] = ()
    """Job kinds."""
    methods: Sequence[object] = ()
    """Objects that implement methods of the control API under the same names."""
    evidence: Callable[[Evidence], Evidence] = _unchanged
    """Adds to the gates' evidence."""
    status: Callable[[pb.GetStatusResponse], None] = _add_nothing
    """Adds to the status."""


@dataclass(kw_only=True, eq=False)
class SharedFlows:
    settings: RouterSettings
    name: str
    """Name of this router, as the holder of its leases."""
    clock: Clock
    connections: Connections
    traffic: Traffic
    transfer: Transfer
    mover: MoverView
    observer: Observer
    shadow: Shadow
    auditor: Auditor
    clients: Clients
    public_address: Callable[[], str]
    """Address of the public listener once it serves."""
    own_metadata: tuple[tuple[str, str], ...] = ()
    """Metadata of the router's own calls of its public listener."""
    direct_meter: Meter = field(default_factory=Meter)
    """Measurements of the direct calls that the stores report."""
    direct: DirectRoutes = field(init=False)
    """Direct routes. Their loop runs if the router has an xDS listener."""
    migration: Migration = field(init=False)
    measurement: Measurement = field(init=False)
    jobs: Jobs = field(init=False)
    features: list[Feature] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        control_store, cache = self.connections.control_store, self.cache
        settings, contract = self.settings, self.connections.contract
        self.direct = DirectRoutes(contract, cache, self.mover, settings.logged_phases, settings.xds_sample_permille)
        self.migration = Migration(control_store, cache, self.evidence, self.clock, self.settings.limits)
        sources = Sources(
            lambda: (cache.current.shadow_since, self.shadow.counts),
            self._noise,
            self.traffic.answered,
            lambda: self.auditor.ledger.counts,
            self.traffic.totals,
            lambda: cache.current.generation,
            lambda: old_clients(self.clients, self.clock),
            self._identity,
        )
        self.measurement = Measurement(
            control_store, self.traffic.meter, self.name, self.clock, sources, self.direct_meter
        )
        self.jobs = Jobs(
            control_store,
            (),
            self.name,
            self.clock,
            lambda: self.measurement.load(self.observer.worst_lag_seconds, self.observer.fenced),
            self.settings.throttle_limits,
        )

    def _noise(self) -> ShadowCounts:
        report = self.shadow.report()
        return report.counts if report.same else ShadowCounts()

    def _identity(self) -> Identity:
        settings = self.settings
        return Identity(settings.public_auth or "", settings.public_auth_optional, self.cache.current.serves_subjects)

    @property
    def cache(self) -> SettingCache:
        return self.connections.cache

    def add(self, makers: Iterable[Callable[[SharedFlows], Feature]]) -> None:
        for make in makers:
            feature = make(self)
            self.features.append(feature)
            self.jobs.register(feature.kinds)

    def evidence(self, setting: Setting) -> Evidence:
        """The gates' evidence, as of now."""
        seen = self.observer.evidence(setting, self.mover.buckets_at_b, self.jobs.finished_seconds_ago(TO_B))
        seen = self.measurement.evidence(seen)
        seen = replace(seen, under_way=under_way(self.jobs, self.mover, self.observer))
        for feature in self.features:
            seen = feature.evidence(seen)
        return seen

    def control_api(self) -> TypedService:
        """The control API of the shared flows and all features. Raises ValueError."""
        approvals = ApprovalMethods(self.migration, self.cache, self.clock, self.measurement)

        def add_pending(answer: pb.GetStatusResponse) -> None:
            answer.alerts.extend(approvals.alerts(self.cache.current))

        status = StatusMethods(
            self.cache,
            self.observer,
            self.mover,
            self.measurement,
            self.migration,
            self.jobs,
            self.traffic,
            [*(feature.status for feature in self.features), add_pending],
        )
        parts = [method for feature in self.features for method in feature.methods]
        own = [status, PhaseMethods(self.migration), JobMethods(self.jobs, self.migration)]
        return control_service([*own, *parts], approvals)

    @property
    def loops(self) -> list[Loop]:
        """Loops of the shared flows and all features."""
        return [
            self.cache.loop,
            *self.connections.switches.loops,
            self.observer.loop,
            *self.shadow.loops,
            self.auditor.loop,
            self.measurement.loop,
            self.jobs.loop,
            *self.feature_loops,
        ]

    @property
    def feature_loops(self) -> list[Loop]:
        return [loop for feature in self.features for loop in feature.loops]

"""Features with which operators and gates steer the migration."""

from __future__ import annotations

from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.process import certificate_of
from libs.telemetry.instruments import observe_one
from services.router.api.cohorts import CohortMethods, earlier_routers
from services.router.api.control import DoctorMethods
from services.router.api.flags import FlagMethods, flags_of
from services.router.api.identity import IdentityMethods
from services.router.api.limits import LimitMethods
from services.router.api.lost_writes import LedgerMethods
from services.router.api.messages import PHASE_NUMBERS
from services.router.api.probe import ProbeMethods
from services.router.api.rehearsal import RehearsalMethods, add_rehearsal, add_walk
from services.router.api.shadow import ShadowMethods
from services.router.api.status import add_automatic_rollback, add_passed_on, add_phase
from services.router.core.phase import Phase
from services.router.features import operators
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.calls.difference_book import DifferenceBook
from services.router.flows.calls.explain import Explainer
from services.router.flows.jobs.canary import CanaryAuto
from services.router.flows.jobs.rehearsal import DEFAULT_DELAYS, PropagationDelays, Rehearsal, Rehearsals
from services.router.flows.moving.cohort_records import CohortRecords
from services.router.flows.steering.automatic_rollback import AutomaticRollback
from services.router.flows.steering.clients import ClientWatch
from services.router.flows.steering.diagnose import Credentials, Doctor
from services.router.flows.steering.direct_traffic import DirectTraffic
from services.router.flows.steering.identity import IdentityChange
from services.router.flows.steering.measure import answered_by_b
from services.router.flows.steering.noise import NoiseWatch
from services.router.flows.steering.phase_since import PhaseSince
from services.router.flows.steering.probe import OwnCalls, Probe


def canary_auto(flows: SharedFlows) -> Feature:
    """Grow the canary step by step, following a plan."""
    kind = CanaryAuto(
        flows.migration,
        flows.connections.cache,
        lambda: answered_by_b(flows.measurement),
        lambda: flows.mover.settled,
        flows.clock,
    )
    return Feature(kinds=[kind], status=lambda answer: add_walk(answer, flows.jobs))


def cohorts(flows: SharedFlows) -> Feature:
    """Records with a share of their own."""
    connections, measurement = flows.connections, flows.measurement
    methods = CohortMethods(
        flows.migration,
        connections.cache,
        measurement,
        CohortRecords(flows.transfer, flows.clock),
        lambda: connections.cache.lasting_flags,
        has_accounts=connections.contract.account is not None,
    )

    def add(answer: pb.GetStatusResponse) -> None:
        answer.alerts.extend(earlier_routers(connections.cache.current, measurement))

    return Feature(methods=[methods], status=add)


def rehearsal(flows: SharedFlows, waits: PropagationDelays = DEFAULT_DELAYS) -> Feature:
    """Send live buckets to the other store and back."""
    connections, clock = flows.connections, flows.clock
    kind = Rehearsal(connections.stores, flows.migration, connections.cache, flows.measurement.answered, clock, waits)
    rehearsals = Rehearsals(flows.jobs, flows.migration, connections.cache, flows.traffic, clock)
    return Feature(
        kinds=[kind],
        loops=[rehearsals.loop],
        methods=[RehearsalMethods(flows.jobs, flows.migration)],
        evidence=rehearsals.evidence,
        status=lambda answer: add_rehearsal(answer, flows.jobs, rehearsals),
    )


def automatic_rollback(flows: SharedFlows) -> Feature:
    """Send all traffic to A when B fails."""
    connections = flows.connections
    automatic = AutomaticRollback(
        connections.control_store,
        flows.migration,
        flows.measurement,
        connections.cache,
        flows.observer,
        flows.clock,
        flows.name,
        flows.settings.limits,
    )
    observe_one(connections.meter, "baton.rollback.alarm", lambda: bool(automatic.alarm))
    return Feature(loops=[automatic.loop], status=lambda answer: add_automatic_rollback(answer, automatic))


def direct_clients(flows: SharedFlows) -> Feature:
    """Record the clients that still call A directly."""
    watch = ClientWatch(flows.observer, flows.connections.control_store, flows.clock)
    return Feature(loops=[watch.loop], evidence=watch.evidence)


def direct_traffic(flows: SharedFlows) -> Feature:
    """Exchange routes and counts of direct calls with the stores."""
    cache, settings = flows.cache, flows.settings
    traffic = DirectTraffic(
        flows.connections.stores,
        flows.direct_meter,
        flows.clock,
        flows.name,
        lambda: flows.direct.current if settings.xds else None,
        lambda: cache.current.phase in settings.logged_phases,
        flows.direct.changes,
    )

    def take_reporting(stores: frozenset[Store]) -> None:
        flows.direct.reporting = stores
        flows.direct.look()

    traffic.take_reporting = take_reporting
    return Feature(loops=traffic.loops, status=lambda answer: add_passed_on(answer, traffic.passed_on))


def doctor(flows: SharedFlows) -> Feature:
    """Examine a router and its dependencies."""
    connections, settings = flows.connections, flows.settings
    tokens = {"stores": settings.token_file is not None}
    examined = Doctor(
        flows.observer,
        connections.cache,
        connections.control_store,
        settings.event_log_partitions,
        tokens,
        flows.clock,
        Credentials(settings.public_auth or "", settings.public_auth_optional),
        operators.kind_of(settings),
        lambda: flows.evidence(connections.cache.current).log_gap,
        lambda: () if connections.codes is None else connections.codes.key_ids,
        lambda: certificate_of(connections.tls),
    )

    def add_public_auth(answer: pb.GetStatusResponse) -> None:
        answer.public_auth = settings.public_auth or ""
        answer.public_auth_optional = settings.public_auth_optional
        if (certificate := certificate_of(connections.tls)) is not None:
            answer.certificate.CopyFrom(certificate)

    return Feature(status=add_public_auth, methods=[DoctorMethods(examined, flows.clock)])


def flags(flows: SharedFlows) -> Feature:
    """Set flags, and explain the routing of a call."""
    connections = flows.connections
    explainer = Explainer(connections.contract, connections.cache, connections.stores)

    def add(answer: pb.GetStatusResponse) -> None:
        answer.flags.extend(flags_of(connections.switches, connections.cache))

    return Feature(
        methods=[FlagMethods(flows.migration, connections.cache, connections.switches, explainer)], status=add
    )


def identity(flows: SharedFlows) -> Feature:
    """Change the principal under which requests are served."""
    change = IdentityChange(flows.migration, flows.cache, flows.measurement, flows.observer.processes)
    return Feature(methods=[IdentityMethods(change)])


def ledger(flows: SharedFlows) -> Feature:
    """Check acknowledged writes at the stores."""
    logged = [PHASE_NUMBERS[phase] for phase in Phase if phase in flows.settings.logged_phases]
    return Feature(methods=[LedgerMethods(flows.auditor)], status=lambda answer: answer.logged_phases.extend(logged))


def limits(flows: SharedFlows) -> Feature:
    """Change the limits of gates and of automatic rollback."""
    return Feature(methods=[LimitMethods(flows.migration, flows.connections.cache, flows.settings.limits)])


def phase_since(flows: SharedFlows) -> Feature:
    """Report when the phase was entered."""
    since = PhaseSince(flows.connections.control_store, flows.connections.cache)
    return Feature(loops=[since.loop], status=lambda answer: add_phase(answer, since.entry))


def probe(flows: SharedFlows) -> Feature:
    """Make synthetic calls."""
    connections = flows.connections
    own = OwnCalls(flows.own_metadata, connections.tls.own)
    probe = Probe(connections.contract, connections.stores, flows.public_address, flows.clock, own)
    return Feature(methods=[ProbeMethods(flows.migration, probe)])


def shadow(flows: SharedFlows) -> Feature:
    """Compare reads with the other store."""
    book = flows.shadow.book or DifferenceBook(flows.connections.control_store, flows.name, flows.clock)
    noise = NoiseWatch(flows.measurement, flows.connections.control_store, flows.cache)
    methods = ShadowMethods(flows.migration, flows.connections.cache, flows.shadow, book, lambda: noise.floor)
    return Feature(methods=[methods], loops=[noise.loop], evidence=noise.evidence)

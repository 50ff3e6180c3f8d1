"""The feature for the end of a migration."""

from __future__ import annotations

from libs.eventlog.key_ring import KeyRing
from services.router.api.ending import EndingMethods
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.jobs.chronicle import Chronicle
from services.router.flows.jobs.ending import Ending, RouterFacts


def ending(flows: SharedFlows) -> Feature:
    """Keep the facts of the migration, certify it, and take A away."""
    connections, settings = flows.connections, flows.settings
    chronicle = Chronicle(
        connections.control_store, flows.jobs, flows.observer, flows.measurement.clients, flows.clock, flows.name
    )

    def ring() -> KeyRing | None:
        return None if connections.codes is None else connections.codes.ring

    router = RouterFacts(
        flows.name,
        connections.contract.service,
        settings.ledger_permille,
        direct_routes=bool(settings.xds and settings.xds_store_a),
        ring=ring,
    )
    made = Ending(
        chronicle,
        flows.migration,
        flows.cache,
        connections.stores,
        flows.observer,
        flows.evidence,
        flows.clock,
        router,
    )
    return Feature(loops=[chronicle.loop], methods=[EndingMethods(made)], evidence=chronicle.evidence)

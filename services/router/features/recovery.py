"""Features for lost stores and damaged records."""

from __future__ import annotations

from services.router.api.conflicts import ConflictMethods
from services.router.api.records import RecordMethods
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.feed.conflicts import Conflicts
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.repair import RecordRepair
from services.router.flows.feed.reveal import Reveals
from services.router.flows.jobs.recover import Recover, Seize


def recover(flows: SharedFlows) -> Feature:
    """Seize a lost store's share, and bring the store back."""
    connections, clock = flows.connections, flows.clock
    return Feature(
        kinds=[
            Seize(connections.stores, connections.event_log, clock, connections.control_store),
            Recover(connections.stores, connections.event_log, clock, connections.control_store, flows.transfer),
        ]
    )


def conflicts(flows: SharedFlows) -> Feature:
    """Resolve the conflicts that a seizure has journaled."""
    connections = flows.connections
    content_of = LogEvents(connections.event_log, connections.contract).content_of
    found = Conflicts(connections.stores, flows.migration, content_of)
    return Feature(methods=[ConflictMethods(found, Reveals(flows.migration))])


def records(flows: SharedFlows) -> Feature:
    """Show and repair records that cannot be read."""
    connections = flows.connections
    content_of = LogEvents(connections.event_log, connections.contract).content_of
    repair = RecordRepair(connections.stores, flows.migration, connections.contract, content_of)
    return Feature(methods=[RecordMethods(repair, Reveals(flows.migration))])

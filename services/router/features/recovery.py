"""Features for what is lost or damaged: a store, or single records."""

from __future__ import annotations

from services.router.api.conflicts import ConflictMethods
from services.router.api.records import RecordMethods
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.feed.conflicts import Conflicts
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.repair import RecordRepair
from services.router.flows.jobs.recover import Recover, Seize


def recover(flows: SharedFlows) -> Feature:
    """Seize what a lost store owns, and bring the store back."""
    open_, clock = flows.connections, flows.clock
    return Feature(
        kinds=[
            Seize(open_.stores, open_.event_log, clock, open_.control_store),
            Recover(open_.stores, open_.event_log, clock, open_.control_store, flows.transfer),
        ]
    )


def conflicts(flows: SharedFlows) -> Feature:
    """Resolve what a seizure left behind."""
    open_ = flows.connections
    content_of = LogEvents(open_.event_log, open_.contract).content_of
    return Feature(methods=[ConflictMethods(Conflicts(open_.stores, flows.migration, content_of))])


def records(flows: SharedFlows) -> Feature:
    """Show and repair records that cannot be read."""
    open_ = flows.connections
    content_of = LogEvents(open_.event_log, open_.contract).content_of
    return Feature(methods=[RecordMethods(RecordRepair(open_.stores, flows.migration, open_.contract, content_of))])

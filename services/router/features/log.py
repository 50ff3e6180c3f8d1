"""Features of the event log: publish, read, and restart after a loss."""

from __future__ import annotations

from libs.tasks import Loop
from services.router.api.events import EventMethods
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.feed.adopted_logs import AdoptedLogs
from services.router.flows.feed.events import LogEvents
from services.router.flows.feed.heartbeat import PositionReporter
from services.router.flows.feed.parked import ParkedEvents
from services.router.flows.feed.relay import Relay
from services.router.flows.feed.retention import HorizonWatch
from services.router.flows.feed.reveal import Reveals
from services.router.flows.jobs.log_gap import GapWatch
from services.router.flows.jobs.restart_events import RestartEvents


def relays(flows: SharedFlows) -> Feature:
    """Publish both stores' outboxes."""
    connections = flows.connections
    relays = [
        Relay(
            client,
            connections.event_log,
            connections.control_store,
            flows.name,
            flows.clock,
            codes=connections.codes,
            spans=connections.signals.spans,
        )
        for client in connections.stores.values()
    ]
    return Feature(loops=[Loop(f"relay {relay.store}", relay.run_once) for relay in relays])


def events(flows: SharedFlows) -> Feature:
    """Read events, retry or drop parked ones, and restart the feeds after the log was replaced."""
    connections = flows.connections
    methods = EventMethods(
        LogEvents(connections.event_log, connections.contract, connections.codes),
        ParkedEvents(connections.stores, flows.migration),
        RestartEvents(connections.stores, flows.jobs, flows.migration, connections.control_store),
        Reveals(flows.migration),
    )
    return Feature(methods=[methods])


def log_gap(flows: SharedFlows) -> Feature:
    """Report the gap of a replaced log until it is closed."""
    watch = GapWatch(flows.connections.control_store)
    return Feature(loops=[watch.loop], evidence=watch.evidence)


def retention(flows: SharedFlows) -> Feature:
    """Check whether the log drops events that a store has not read."""
    watch = HorizonWatch(flows.observer, flows.connections.event_log, flows.clock)
    return Feature(loops=[watch.loop], evidence=watch.evidence)


def adopted_logs(flows: SharedFlows) -> Feature:
    """Journal that a store has adopted another log."""
    adopted = AdoptedLogs(flows.observer, flows.migration, flows.connections.control_store, flows.name)
    return Feature(loops=[adopted.loop])


def heartbeat(flows: SharedFlows) -> Feature:
    """Publish each store's feed position to the other store."""
    return Feature(loops=[PositionReporter(flows.connections.stores).loop])

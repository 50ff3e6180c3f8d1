"""The table of all metrics: the only source of their names, units and meanings.

Instruments are made from a row by its name (`libs.telemetry.instruments`). docs/metrics.md, the dashboards and the
tests follow from the table. Names and units are OpenTelemetry's; `Metric.exported` is the name that Prometheus reads.

How to add a metric: add a row here, observe it where its value is known, and run `make docs dashboards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from libs.telemetry.metric import Group, Metric, counter, gauge, histogram

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket edges of calls."""
_LOCK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_DELAY_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

A, B, ROUTER = "simple_mcp", "service_layer", "baton_router"
STORES = (A, B)
ALL = (A, B, ROUTER)

GROUPS = (
    Group(
        "Calls of any process",
        ALL,
        (
            histogram(
                "rpc.server.call.duration",
                CALL_SECONDS,
                "Duration of the calls that a listener has served, by method and status",
                "rpc_method",
                "listener",
                "rpc_response_status_code",
            ),
            histogram(
                "http.server.request.duration",
                CALL_SECONDS,
                "Duration of HTTP requests. A process with an HTTP listener exports it",
                "http_request_method",
                "http_route",
                "http_response_status_code",
                optional=True,
            ),
            counter(
                "baton.refused.calls",
                "{call}",
                "Calls and HTTP connections that a limit refused, by listener and limit",
                "listener",
                "limit",
            ),
        ),
    ),
    Group(
        "Any process",
        ALL,
        (
            gauge("baton.build.info", "", "1; the labels name the program and its version", "program", "version"),
            counter("process.cpu.time", "s", "Processor time of the process, user and system"),
            gauge("process.memory.usage", "By", "Resident memory of the process. Linux only", optional=True),
            gauge("process.open_file_descriptor.count", "{file}", "Open files and sockets. Linux only", optional=True),
            gauge("process.uptime", "s", "Time since the start of the process"),
            gauge("baton.event_loop.tasks", "{task}", "Tasks of the event loop"),
            histogram(
                "baton.event_loop.delay",
                _DELAY_SECONDS,
                "Time by which the event loop ran a timer too late, measured ten times a second",
            ),
            gauge(
                "baton.tls.certificate.days",
                "{day}",
                "Days until the certificate in force expires. A process with a certificate exports it",
                optional=True,
            ),
            gauge(
                "baton.tls.reload.failing",
                "{file}",
                "Replaced TLS files that cannot be used, so the last good ones stay. A process with TLS exports it",
                optional=True,
            ),
        ),
    ),
    Group(
        "Evidence of the gates, at a router",
        (ROUTER,),
        (
            gauge("baton.lag", "s", "The larger lag of the two feeds"),
            gauge("baton.parked.events", "{event}", "Events that a store could not apply, or the log refused"),
            gauge("baton.unauthenticated.events", "{event}", "Parked events without a right authentication code"),
            gauge(
                "baton.log.risk.events",
                "{event}",
                "Events that a store has not read and the log may soon drop",
                "store",
            ),
            gauge("baton.errors.share", "1", "Share of B's calls of the last minutes that failed by its fault"),
            gauge("baton.errors.calls", "{call}", "B's calls of the last minutes"),
            gauge(
                "baton.inconsistency.share",
                "1",
                "Share of the compared reads that disagree, above the noise floor. Unknown before the first comparison",
                optional=True,
            ),
            gauge("baton.compared.reads", "{read}", "Compared reads with a result"),
            gauge(
                "baton.reconcile.share",
                "1",
                "Share of the records that differed when the stores were compared. Unknown before the first comparison",
                optional=True,
            ),
            gauge(
                "baton.reconcile.left",
                "{record}",
                "Differing records that were not repaired. Unknown before the first comparison",
                optional=True,
            ),
            gauge(
                "baton.lock.wait.p99",
                "s",
                "Bounds of P99 of a write's wait for its write lock at B. Unknown below 299 writes",
                "bound",
                optional=True,
            ),
            gauge(
                "baton.call.p99",
                "s",
                "Bounds of P99 of an operation at a store, in the same minutes at both. Unknown below 299 calls",
                "operation",
                "store",
                "bound",
                optional=True,
            ),
            gauge(
                "baton.write.delta",
                "s",
                "Bounds of P99 of a write at B minus P99 at A. Unknown below 299 calls",
                "operation",
                "bound",
                optional=True,
            ),
            gauge("baton.ledger.checked", "{write}", "Acknowledged writes that were checked at the stores"),
            gauge("baton.ledger.lost", "{write}", "Acknowledged writes that their owner does not have"),
            gauge(
                "baton.gate.verdict",
                "",
                "1 for the verdict of each gate of the next phase, 0 for the other verdicts",
                "gate",
                "verdict",
            ),
        ),
    ),
    Group(
        "Migration, at a router",
        (ROUTER,),
        (
            gauge("baton.phase.info", "", "1 for the phase in force, 0 for the others", "phase"),
            gauge("baton.setting.generation", "{generation}", "Generation of the setting that this router uses"),
            gauge("baton.setting.age", "s", "Time since the control store confirmed the setting"),
            gauge("baton.hold", "", "1 while all traffic is held at A since a rollback, else 0"),
            gauge("baton.canary.set", "1", "Share of the buckets that the canary sends to B"),
            gauge("baton.buckets.target.share", "1", "Share of the buckets whose target is B"),
            gauge("baton.buckets.actual.share", "1", "Share of the buckets that are at B with all their records"),
            gauge("baton.settled", "", "1 if each bucket is at its target, else 0"),
            counter("baton.handoffs", "{handoff}", "Records that this router has handed over for a call"),
            counter(
                "baton.rollbacks",
                "{rollback}",
                "Rollbacks that this router has made, by trigger: operator or automatic",
                "trigger",
            ),
            gauge(
                "baton.rollback.alarm",
                "",
                "1 while B fails and Baton may not roll back by itself, so that an operator has to decide, else 0",
            ),
            gauge(
                "baton.job.progress",
                "1",
                "Share of the newest job of a lane that is done. Unknown without a known total",
                "lane",
                optional=True,
            ),
            gauge(
                "baton.job.state",
                "",
                "1 for the state of the newest job of a lane, 0 for the other states. Unknown without jobs",
                "lane",
                "state",
                optional=True,
            ),
            gauge(
                "baton.job.idle",
                "s",
                "Time since a running job last advanced; 0 for jobs that do not run. Unknown without jobs",
                "lane",
                optional=True,
            ),
            gauge("baton.old.clients", "{client}", "Clients that call A directly, or with an old schema version"),
        ),
    ),
    Group(
        "Calls of clients, at a router",
        (ROUTER,),
        (
            histogram(
                "rpc.client.call.duration",
                CALL_SECONDS,
                "Duration of this router's calls to a store, by method, store and status. Each attempt counts",
                "rpc_method",
                "store",
                "rpc_response_status_code",
            ),
            counter(
                "baton.answered.calls",
                "{call}",
                "Client calls by the store that answered, and kind: read or write",
                "store",
                "kind",
            ),
            counter("baton.failed.calls", "{call}", "Client calls that a store failed by its fault", "store"),
            counter("baton.unavailable.calls", "{call}", "Client calls that ended with UNAVAILABLE"),
            counter("baton.stale.reads", "{read}", "Reads that the replica answered, marked stale"),
            gauge("baton.waiting.calls", "{call}", "Client calls that wait for an unreachable store", "store"),
            gauge(
                "baton.xds.streams",
                "{stream}",
                "Clients that get routes from this router by xDS. A router with an xDS listener exports it",
                optional=True,
            ),
            counter(
                "baton.xds.refused",
                "{response}",
                "Routes that a client with xDS refused (NACK). A router with an xDS listener exports it",
                optional=True,
            ),
            gauge(
                "baton.direct.buckets",
                "{bucket}",
                "Buckets, of 1024, whose store clients with xDS may call directly. A router with an xDS listener"
                " exports it",
                "store",
                optional=True,
            ),
        ),
    ),
    Group(
        "Stores and log, as a router sees them",
        (ROUTER,),
        (
            gauge("baton.store.reachable", "", "1 if the store answered the last query, else 0", "store"),
            gauge("baton.store.serving", "", "1 if the store is reachable and serves, else 0", "store"),
            gauge(
                "baton.store.processes.missing",
                "{process}",
                "Addresses of the store without a process that answers. Unknown in a router's first minute",
                "store",
                optional=True,
            ),
            gauge("baton.store.records", "{record}", "Records that the store has", "store"),
            gauge("baton.store.owned.records", "{record}", "Records that the store owns", "store"),
            gauge("baton.store.owned.buckets", "{bucket}", "Buckets that the store owns", "store"),
            gauge("baton.feed.lag", "s", "Age of the oldest change that the store's feed has not applied", "store"),
            gauge("baton.feed.lag.events", "{event}", "Events of the log that the store's feed has not read", "store"),
            counter(
                "baton.feed.events",
                "{event}",
                "Events that the store's feed has read, by result: applied, old, parked or journaled",
                "store",
                "result",
            ),
            gauge("baton.outbox.entries", "{event}", "Changes of the store that are not in the log yet", "store"),
            gauge("baton.outbox.size", "By", "Size of these changes", "store"),
            gauge("baton.outbox.age", "s", "Age of the oldest of them", "store"),
            gauge(
                "baton.outbox.fill.share",
                "1",
                "Largest share of a limit of the outbox that is in use; at 1 writes fail",
                "store",
            ),
            gauge("baton.conflicts", "{conflict}", "Open conflicts that seizures have left at the store", "store"),
            gauge("baton.log.reachable", "", "1 if the event log answered the last query, else 0"),
        ),
    ),
    Group(
        "Stores",
        STORES,
        (
            gauge("baton.serving", "", "1 while this process serves calls, else 0"),
            gauge(
                "baton.feed.behind",
                "s",
                "Lag behind the other store, as this process measures it. Unknown before the other store's first event",
                optional=True,
            ),
            histogram(
                "baton.lock.acquisition.duration",
                _LOCK_SECONDS,
                "Time from the request for a lock to its outcome",
                "backend",
                "outcome",
                optional=True,
            ),
            gauge("baton.lock.held", "{lock}", "Locks that this process holds", "backend"),
            gauge("baton.lock.waiting", "{call}", "Calls that wait for a lock", "backend"),
            counter(
                "baton.lock.lost", "{lock}", "Locks that were not renewed in time, or that the server forgot", "backend"
            ),
            gauge(
                "baton.lock.server.away",
                "",
                "1 while Redis is unreachable, else 0. A process with locks in Redis exports it",
                "backend",
                optional=True,
            ),
            counter(
                "baton.direct.calls",
                "{call}",
                "Direct calls of clients that follow the router's routes, by outcome: answered or failed here, or"
                " passed on to a router",
                "outcome",
            ),
            gauge(
                "db.client.connection.count",
                "{connection}",
                "Connections of a pool that are in use. A process with PostgreSQL exports it, as the next three",
                "db_client_connection_pool_name",
                optional=True,
            ),
            gauge(
                "db.client.connection.max",
                "{connection}",
                "Connections that a pool may have",
                "db_client_connection_pool_name",
                optional=True,
            ),
            gauge(
                "db.client.connection.pending_requests",
                "{request}",
                "Requests that wait for a connection of a pool",
                "db_client_connection_pool_name",
                optional=True,
            ),
            counter(
                "db.client.connection.timeouts",
                "{timeout}",
                "Requests that got no connection of a pool in time",
                "db_client_connection_pool_name",
                optional=True,
            ),
        ),
    ),
)

TABLE: Mapping[str, Metric] = {metric.name: metric for group in GROUPS for metric in group.metrics}
"""Metrics by OpenTelemetry's name."""

EXPORTED: Mapping[str, Metric] = {metric.exported: metric for metric in TABLE.values()}
"""Metrics by the name that Prometheus reads."""


def of_program(program: str) -> Iterator[Metric]:
    """The metrics that a program's processes export."""
    return (metric for group in GROUPS if program in group.programs for metric in group.metrics)

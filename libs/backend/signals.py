"""Metrics of a store's process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import Meter

from libs.backend.serving import Serving
from libs.store.connections import PoolState
from libs.store.port import StorePorts
from libs.telemetry.instruments import Reading, observe, observe_one


def measure_store(
    meter: Meter, ports: StorePorts, serving: Serving, behind_seconds: Callable[[], float | None]
) -> None:
    """`behind_seconds`: lag of the feed; None if unknown."""

    def pools(read: Callable[[PoolState], int]) -> Callable[[], Iterable[Reading]]:
        return lambda: [Reading(read(pool), {"db.client.connection.pool.name": pool.name}) for pool in ports.pools]

    observe_one(meter, "baton.serving", lambda: serving.serving)
    observe_one(meter, "baton.feed.behind", behind_seconds)
    observe(meter, "db.client.connection.count", pools(lambda pool: pool.in_use))
    observe(meter, "db.client.connection.max", pools(lambda pool: pool.size))
    observe(meter, "db.client.connection.pending_requests", pools(lambda pool: pool.waiting))
    observe(meter, "db.client.connection.timeouts", pools(lambda pool: pool.timeouts))

"""The processes of the stores that a router has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from libs.clock import Clock
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from services.router.flows.steering.report import Identity

PROCESS_SECONDS = 10.0
"""A process of a store that has not answered for this long is no longer counted."""

MISSED_SECONDS = 60.0
"""A process that has not answered for this long is missing. Each poll reaches only one of them."""


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    """"store A", "store B", or "router" and its name."""
    id: str
    """Id of a store's process; "" for routers, and for stores of an earlier release."""
    identity: Identity | None
    """None from an earlier release."""
    age_seconds: float = 0.0
    certificate: telemetry_pb2.Certificate | None = None
    """None without TLS."""
    locks_away: bool = False
    """It cannot reach its lock server."""


class StoreProcesses:
    """The processes of the stores that have answered this router. An address of B may stand for several."""

    def __init__(self, clock: Clock, addresses: Mapping[Store, int] | None = None) -> None:
        """`addresses`: the number that this router has of each store; 1 by default."""
        self._clock = clock
        self._addresses = addresses or {}
        self._since = clock.monotonic()
        self._seen: dict[tuple[Store, str], tuple[float, Process]] = {}

    def note(self, store: Store, status: pb.GetStatusResponse) -> None:
        identity = None
        if status.HasField("serves_subjects"):
            identity = Identity(status.public_auth, status.public_auth_optional, status.serves_subjects)
        certificate = status.certificate if status.HasField("certificate") else None
        seen = Process(
            f"store {store}",
            status.process,
            identity,
            certificate=certificate,
            locks_away=status.locks.breaker not in ("", "closed"),
        )
        self._seen[store, status.process] = self._clock.monotonic(), seen

    def of(self, store: Store) -> list[Process]:
        return self._within(store, PROCESS_SECONDS)

    def missing(self, store: Store) -> int | None:
        """The number of addresses without a process that answers; None if this router has not asked for long enough."""
        if self._clock.monotonic() - self._since < MISSED_SECONDS:
            return None
        return max(0, self._addresses.get(store, 1) - len(self._within(store, MISSED_SECONDS)))

    def certificate(self, store: Store) -> telemetry_pb2.Certificate | None:
        """The fewest days and a trouble of its processes; None without TLS."""
        found = [process.certificate for process in self.of(store) if process.certificate is not None]
        if not found:
            return None
        days = [one.days for one in found if one.HasField("days")]
        trouble = next((one.reload_trouble for one in found if one.reload_trouble), "")
        return telemetry_pb2.Certificate(days=min(days, default=None), reload_trouble=trouble)

    def locks_away(self, store: Store) -> bool:
        """Whether one of its processes cannot reach the lock server."""
        return any(process.locks_away for process in self.of(store))

    def _within(self, store: Store, seconds: float) -> list[Process]:
        now = self._clock.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen[0] <= MISSED_SECONDS}
        return [
            replace(process, age_seconds=now - at)
            for (of, _), (at, process) in self._seen.items()
            if of is store and now - at <= seconds
        ]

"""The processes of the stores that a router has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from libs.clock import Clock
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from services.router.flows.steering.report import Identity

PROCESS_SECONDS = 10.0
"""A process of a store that has not answered for this long is no longer counted."""


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    """"store A", "store B", or "router" and its name."""
    id: str
    """Id of a store's process; "" for routers, and for stores of an earlier release."""
    identity: Identity | None
    """None from an earlier release."""
    age_seconds: float = 0.0


class StoreProcesses:
    """The processes of the stores that have answered this router. An address of B may stand for several."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[tuple[Store, str], tuple[float, Process]] = {}

    def note(self, store: Store, status: pb.GetStatusResponse) -> None:
        identity = None
        if status.HasField("serves_subjects"):
            identity = Identity(status.public_auth, status.public_auth_optional, status.serves_subjects)
        seen = Process(f"store {store}", status.process, identity)
        self._seen[store, status.process] = self._clock.monotonic(), seen

    def of(self, store: Store) -> list[Process]:
        now = self._clock.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen[0] <= PROCESS_SECONDS}
        return [replace(process, age_seconds=now - at) for (of, _), (at, process) in self._seen.items() if of is store]

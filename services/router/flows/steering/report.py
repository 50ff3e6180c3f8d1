"""The report that each router writes to the control store every second: its measurements as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from libs.clock import Clock
from libs.ownership.model import Store
from libs.rpc.clients import Clients
from libs.telemetry.latency import Histogram
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.write_ledger import LedgerCounts
from services.router.flows.traffic import Answered, Totals

NO_TOTALS = Totals()
NO_NOISE = ShadowCounts()
_SHADOW_COUNTS = 7
_LEDGER_COUNTS = 6
MOST_CLIENTS = 50
"""Maximum number of clients in a report: the most recent callers."""


class OldClient(NamedTuple):
    """A client of an old schema version, at one router or summed over all."""

    name: str
    schema_version: int
    """The oldest version that it used."""
    calls: int
    idle_seconds: float


def old_clients(own: Clients, clock: Clock) -> list[OldClient]:
    """Return this router's clients of old schema versions."""
    now = clock.monotonic()
    return [OldClient(seen.name, seen.schema_version, seen.calls, now - seen.last_at) for seen in own.seen()]


class Identity(NamedTuple):
    """How a process authenticates its clients, and under which principal it serves their requests."""

    public_auth: str
    """The process's setting public_auth; "" if it is not set."""
    optional: bool
    """The process's setting public_auth_optional."""
    serves_subjects: bool


@dataclass(frozen=True, slots=True)
class DirectCalls:
    """The calls that clients sent to the stores directly, as one router has read them from the stores' processes."""

    seconds: tuple[tuple[Counts, Counts], ...]
    recent: Mapping[Store, Counts]
    parities: tuple[Parity, ...]
    latency_seconds: float | None
    latencies: Mapping[Store, Histogram]
    answered_by_b: int
    """Calls that B has answered, since the router started."""
    operations: Mapping[Store, Counter[str]] = field(default_factory=dict)
    periods: tuple[tuple[Counts, Counts], ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(counts.calls for counts in self.recent.values()) or bool(self.parities)

    @property
    def weight(self) -> int:
        """Number of the latest calls: the view of the router with the most calls counts."""
        return sum(counts.calls for counts in self.recent.values()) + self.last_minute

    @property
    def last_minute(self) -> int:
        """Number of calls of the last minute."""
        return sum(counts.calls for two in self.seconds for counts in two)


@dataclass(frozen=True, slots=True)
class Measured:
    """The report of one router."""

    seconds: tuple[tuple[Counts, Counts], ...]
    """A's and B's counts per second, newest first."""
    recent: Mapping[Store, Counts]
    parities: tuple[Parity, ...]
    shadow_run: int
    shadow: ShadowCounts
    answered: Answered
    ledger: LedgerCounts
    latency_seconds: float | None = None
    """P99 of the calls of the last LOAD_SECONDS; None if there were none."""
    latencies: Mapping[Store, Histogram] = field(default_factory=dict)
    """Latencies of the calls of the last LOAD_SECONDS."""
    totals: Totals = NO_TOTALS
    generation: int = 0
    """Generation of the setting that the router uses; 0 if unknown."""
    clients: tuple[OldClient, ...] = ()
    """Clients of old schema versions at its public listener, the most recent caller first."""
    identity: Identity | None = None
    """None from an earlier release."""
    setting_fields: frozenset[str] = frozenset()
    """Fields of the setting that the router supports; empty from an earlier release."""
    direct: DirectCalls | None = None
    """None without direct calls."""
    operations: Mapping[Store, Counter[str]] = field(default_factory=dict)
    """Calls of the last LOAD_SECONDS, by operation."""
    periods: tuple[tuple[Counts, Counts], ...] = ()
    """A's and B's counts per period of `core.measure.PERIOD_SECONDS`, newest first. Without denials."""
    noise: ShadowCounts = NO_NOISE
    """Counts of reads that compare a store with itself."""

    def to_json(self) -> str:
        return json.dumps(
            {
                **_to_fields(self),
                "shadow_run": self.shadow_run,
                # An earlier release reads seven counts.
                "shadow": self.shadow[:_SHADOW_COUNTS],
                "allowed": self.shadow.allowed,
                "noise": self.noise,
                "answered": self.answered,
                # An earlier release reads six counts, and no router's report when there are more.
                "ledger": self.ledger[:_LEDGER_COUNTS],
                "doubled": self.ledger.doubled,
                "totals": self.totals,
                "generation": self.generation,
                "clients": self.clients,
                "identity": self.identity,
                "setting_fields": sorted(self.setting_fields),
                "direct": self.direct and {**_to_fields(self.direct), "answered_by_b": self.direct.answered_by_b},
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """Raises ValueError if a router of another version wrote it."""
        try:
            fields = json.loads(text)
            return cls(
                **_from_fields(fields),
                shadow_run=fields["shadow_run"],
                shadow=ShadowCounts(*fields["shadow"])._replace(allowed=fields.get("allowed", 0)),
                noise=ShadowCounts(*fields.get("noise", ())[: len(NO_NOISE)]),
                answered=Answered(*fields["answered"]),
                ledger=LedgerCounts(*fields.get("ledger", ()))._replace(doubled=fields.get("doubled", 0)),
                totals=_totals(fields.get("totals", ())),
                generation=fields.get("generation", 0),
                clients=tuple(OldClient(*client) for client in fields.get("clients", ())),
                identity=Identity(*known) if (known := fields.get("identity")) else None,
                setting_fields=frozenset(fields.get("setting_fields", ())),
                direct=DirectCalls(**_from_fields(direct), answered_by_b=direct["answered_by_b"])
                if (direct := fields.get("direct"))
                else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a router's measurements: {error!r}") from error


def _to_fields(found: Measured | DirectCalls) -> dict[str, Any]:
    return {
        "seconds": [[*a, *b] for a, b in found.seconds],
        "recent": {store.value: counts for store, counts in found.recent.items()},
        "parities": [[p.operation, p.is_read, dict(p.a), dict(p.b)] for p in found.parities],
        "latency_seconds": found.latency_seconds,
        "latencies": {store.value: dict(counts) for store, counts in found.latencies.items()},
        "operations": {store.value: dict(counts) for store, counts in found.operations.items()},
        "periods": [[*a[:2], *b[:2]] for a, b in found.periods],
    }


def _from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seconds": tuple((Counts(*row[:3]), Counts(*row[3:])) for row in fields["seconds"]),
        "recent": {store: Counts(*fields["recent"][store.value]) for store in Store},
        "parities": tuple(Parity(name, read, _histogram(a), _histogram(b)) for name, read, a, b in fields["parities"]),
        "latency_seconds": fields.get("latency_seconds"),
        "latencies": {Store(store): _histogram(counts) for store, counts in fields.get("latencies", {}).items()},
        "operations": {Store(store): Counter(counts) for store, counts in fields.get("operations", {}).items()},
        "periods": tuple((Counts(*row[:2]), Counts(*row[2:])) for row in fields.get("periods", ())),
    }


def _histogram(fields: Mapping[str, Any]) -> Counter[int]:
    return Counter({int(bucket): int(count) for bucket, count in fields.items()})


def _totals(fields: Sequence[Any]) -> Totals:
    if not fields:
        return NO_TOTALS
    reads, writes, failures, handoffs, stale_reads, unavailable = fields
    return Totals(tuple(reads), tuple(writes), tuple(failures), handoffs, stale_reads, unavailable)

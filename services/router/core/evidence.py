"""What is known, and what is wanted. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from libs.telemetry.latency import Histogram
from services.router.core.horizon import Risk
from services.router.core.ledger import LedgerCounts
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.reconcile import Compared


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds, and how much evidence is needed. Rates are shares of 1."""

    lag_seconds: float = 300.0
    mismatch_rate: float = 0.0001
    """Must be below."""
    mismatch_alert_rate: float = 0.001
    """Above it a person is called."""
    compared_reads: int = 30_000
    error_rate: float = 0.005
    """Must be below."""
    error_calls: int = 600
    golden_error_rate: float = 0.001
    """At most."""
    golden_calls: int = 3000
    lock_seconds: float = 0.05
    write_delta_seconds: float = 0.1
    """Must be below."""
    latency_margin: float = 0.1
    """By how much of A's P99 B's may be above it and count as equal: no number of calls shows that two are the same."""
    latency_calls: int = 300
    """Of each store, of one operation. With fewer than 299 there is no upper bound of P99."""
    ledger_writes: int = 300
    """Acknowledged writes that were held against the stores."""
    compared_seconds: float = 3600.0
    """How old a comparison of the stores may be."""
    rehearsal_seconds: float = 7 * 86400.0
    audit_seconds: float = 7 * 86400.0
    client_seconds: float = 28 * 86400.0
    """How long nobody must have called A directly."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now. None: not known."""

    audit_seconds_ago: float | None = None
    """Since the last one ended, below 0 if dated in the future; None: there was none."""
    audit_records: int | None = None
    """How many records it looked at."""
    audit_found: str = ""
    """What it found, in words."""
    audit_trouble: str = ""
    """What of that nobody has accepted or may accept; "" when there is nothing of it."""
    backfill_finished_seconds_ago: float | None = None
    lag_seconds: float | None = None
    """The worse one of the two feeds."""
    log_gap: str = ""
    """Why records of a former log may be at one store only; "" if they are not."""
    parked: int | None = None
    """Events that could not be applied, at both stores."""
    risks: tuple[Risk, ...] | None = None
    """By store: events that it has not read and that the log may soon drop."""
    canary_permille: int = 0
    buckets_at_b: int | None = None
    """Buckets of which A owns neither a row nor the absence."""
    buckets: int = 1024
    a_owned_records: int | None = None
    a_owned_absences: int | None = None
    a_outbox_entries: int | None = None
    """Changes of A that are not in the log yet."""
    b_calls: Counts | None = None
    """Of the last minutes, over all routers."""
    latencies: tuple[Parity, ...] | None = None
    """By operation, over the minutes of the last hour in which both stores served it, over all routers."""
    shadow: ShadowCounts | None = None
    """Since the comparison was set, over all routers."""
    compared: Compared | None = None
    """The stores themselves, record by record; None: they never were."""
    turn_waits: Histogram | None = None
    """How long writes at B have waited for their turn in the last minutes, over all its processes that tell."""
    ledger: LedgerCounts | None = None
    """Over all routers."""
    rehearsal_seconds_ago: float | None = None
    """Since the last one ended, below 0 if dated in the future; None: there was none."""
    rehearsal_trouble: str = ""
    """What went wrong in it; "" when nothing did."""
    clients_watched_seconds: float | None = None
    """For how long it is known who calls A directly."""
    client_idle_seconds: float | None = None
    """Since the last direct call; None: there was none in that time."""
    client_name: str = ""
    """Whose that was."""
    clocks_apart_seconds: float = 0.0
    """The largest difference that was seen between this router's clock, the stores' clocks, and times in the log."""
    under_way: tuple[str, ...] | None = None
    """Jobs, moves, recoveries and conflicts that are open."""

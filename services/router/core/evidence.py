"""The evidence that gates are checked against. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from libs.telemetry.latency import Histogram
from services.router.core.differences import Compared
from services.router.core.measure import Counts, Parity, ShadowCounts
from services.router.core.noise import NoiseFloor
from services.router.core.retention import Risk
from services.router.core.write_ledger import LedgerCounts


class Decided(NamedTuple):
    """The answer of the webhook that decides about the next phase."""

    passes: bool | None
    """None: there is no verdict."""
    text: str
    """The answer, or why there is none, in words."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The state of the migration as one router sees it. None: unknown. Counts are those of all routers."""

    audit_seconds_ago: float | None = None
    """Seconds since the last audit ended, below 0 if dated in the future; None: there was none."""
    audit_records: int | None = None
    """Number of records that it checked."""
    audit_summary: str = ""
    """Findings of the last audit, in words."""
    audit_findings: str = ""
    """Findings not yet accepted, or not acceptable; empty if none."""
    backfill_finished_seconds_ago: float | None = None
    lag_seconds: float | None = None
    """The larger lag of the two feeds."""
    log_gap: str = ""
    """Reason why records of a replaced log may be at one store only; empty if they are not."""
    parked: int | None = None
    """Events that could not be applied, at both stores."""
    unauthenticated: int | None = None
    """Parked events without a right authentication code."""
    risks: tuple[Risk, ...] | None = None
    """Number of events, by store, that it has not read and that the log may soon drop."""
    canary_permille: int = 0
    buckets_at_b: int | None = None
    """Buckets that A does not own and in which it owns no record."""
    buckets: int = 1024
    a_owned_records: int | None = None
    a_owned_buckets: int | None = None
    a_outbox_entries: int | None = None
    """Changes of A that are not in the log yet."""
    b_calls: Counts | None = None
    """Calls of the last minutes."""
    latencies: tuple[Parity, ...] | None = None
    """Latencies by operation, in those minutes of the last hour in which both stores served it."""
    shadow: ShadowCounts | None = None
    """Results since the comparison of reads was set."""
    noise: NoiseFloor | None = None
    """None: it was not measured."""
    compared: Compared | None = None
    """The last comparison of all records; None: there was none."""
    lock_waits: Histogram | None = None
    """Times that writes at B have waited for their lock in the last minutes, at all its processes that report."""
    ledger: LedgerCounts | None = None
    rehearsal_seconds_ago: float | None = None
    """Seconds since the last rehearsal ended, below 0 if dated in the future; None: there was none."""
    rehearsal_failure: str = ""
    """Failure of the last rehearsal; empty if there was none."""
    clients_watched_seconds: float | None = None
    """Time for which direct calls to A have been observed."""
    client_idle_seconds: float | None = None
    """Seconds since the last direct call; None: there was none in that time."""
    client_name: str = ""
    """The caller of the last direct call."""
    clocks_apart_seconds: float = 0.0
    """The largest difference between this router's clock, the stores' clocks, and times in the log."""
    deep_seconds_ago: float | None = None
    """Seconds since the last deep comparison ended, below 0 if dated in the future; None: there was none."""
    deep_left: int | None = None
    """Differences that it left."""
    backup_seconds_ago: float | None = None
    """Seconds since A was exported to a verified cold backup, below 0 if dated in the future; None: there is none."""
    under_way: tuple[str, ...] | None = None
    """Open jobs, moves, recoveries and conflicts."""
    webhook: Decided | None = None
    """None: no webhook decides about the next phase."""

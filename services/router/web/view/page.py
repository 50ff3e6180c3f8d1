"""The context of the page's templates, from the answers of the control API. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.pb.baton.control.v1 import approvals_pb2, conflicts_pb2, events_pb2
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.core.effects import STORE_NAMES
from services.router.web.view import buckets, differences, gates, journal, phases, stores, work
from services.router.web.view.words import duration, store

SECTIONS = ("head", "stores", "buckets", "canary", "gates", "rollback", "differences", "jobs", "events", "journal")
"""Sections in the order of the page. Each has a template of its name."""
OF_STATUS = SECTIONS[:6]
"""Sections that the status alone fills."""

OLD_REPORT_SECONDS = 5.0
MOST_OF_A_STORE = 50
"""Parked events, and conflicts, of each store on the page."""


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    generation: int
    age: str
    behind: bool
    """Whether the router uses another setting, or has not reported for long."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that waits for a second person."""

    id: str
    text: str
    caller: str
    reason: str


@dataclass(slots=True)
class Answers:
    """The latest answers of the control API besides the status. An absent one has a trouble instead."""

    found: dict[str, Any] = field(default_factory=dict)
    """Answers by method."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Why there is no answer, by method."""
    comparison: pb.Job | None = None
    """The latest job "reconcile", with its report."""

    def get(self, method: str, default: Any) -> Any:
        return self.found.get(method, default)

    def trouble(self, method: str) -> str:
        return self.troubles.get(method, "")


def context(status: pb.GetStatusResponse, answers: Answers, now: float) -> Mapping[str, Any]:
    """`now`: UNIX time in seconds."""
    limits = answers.get("ListLimits", None)
    shadow = answers.get("GetShadow", None)
    examples = answers.get("ListDifferences", pb.ListDifferencesResponse()).examples
    ledger = answers.get("GetLedger", pb.GetLedgerResponse())
    return {
        "head": phases.head(status, now),
        "routers": [_router(one, status.setting.generation) for one in status.routers],
        "stores": stores.stores(status, None if limits is None else {one.name: one.value for one in limits.limits}),
        "strip": buckets.strip(status),
        "canary": buckets.canary(status),
        "gates": gates.gates(status.gates),
        "cost": gates.cost(status.rollback_cost),
        "switches": gates.switches(status.flags),
        "lost_stores": [STORE_NAMES[store(one.store)] for one in status.stores if not one.reachable],
        "compared": differences.compared(shadow, examples) if shadow is not None else None,
        "compared_trouble": answers.trouble("GetShadow"),
        "repair": differences.repair(answers.comparison) if answers.comparison is not None else None,
        "jobs": work.jobs(answers.get("ListJobs", pb.ListJobsResponse()).jobs),
        "jobs_trouble": answers.trouble("ListJobs"),
        "ledger": work.ledger(status.ledger),
        "lost": [one.key for one in ledger.lost],
        "lost_trouble": answers.trouble("GetLedger"),
        **_left(answers),
        "clients": work.clients(status.clients),
        "journal": journal.entries(answers.get("ListJournal", pb.ListJournalResponse()).entries),
        "journal_trouble": answers.trouble("ListJournal"),
    }


def _left(answers: Answers) -> dict[str, Any]:
    parked = answers.get("ListParked", events_pb2.ListParkedResponse())
    conflicts = answers.get("ListConflicts", conflicts_pb2.ListConflictsResponse())
    pending = answers.get("ListPendingCalls", approvals_pb2.ListPendingCallsResponse())
    return {
        "parked": work.parked(parked.events),
        "parked_trouble": answers.trouble("ListParked") or "; ".join(parked.troubles),
        "conflicts": work.conflicts(conflicts.conflicts),
        "conflicts_trouble": answers.trouble("ListConflicts") or "; ".join(conflicts.troubles),
        "parked_cut": _is_cut(one.store for one in parked.events),
        "conflicts_cut": _is_cut(one.store for one in conflicts.conflicts),
        "most": MOST_OF_A_STORE,
        "pending_trouble": answers.trouble("ListPendingCalls"),
        "pending": [Pending(one.id, one.effect, one.subject, one.reason) for one in pending.calls],
    }


def _is_cut(stores_of_rows: Iterable[int]) -> bool:
    """Whether a store may have more rows than the page asked for."""
    return max(Counter(stores_of_rows).values(), default=0) >= MOST_OF_A_STORE


def _router(one: pb.RouterStatus, generation: int) -> Router:
    behind = one.generation != generation or one.age_seconds > OLD_REPORT_SECONDS
    return Router(one.name, one.generation, duration(one.age_seconds), behind)

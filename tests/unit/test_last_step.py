"""Clocks that differ are shown, and change nothing else."""

from dataclasses import replace

import pytest

from libs.clock import Age, ManualClock
from services.router.core.attention import clock_warning
from services.router.core.audit import AuditReport
from services.router.core.differences import Findings
from services.router.core.evidence import Evidence
from services.router.core.gates import Verdict, check
from services.router.core.jobs import Job, JobState
from services.router.core.measure import ShadowCounts
from services.router.flows.jobs import audit, rehearsal
from services.router.flows.jobs.backfill import TO_B
from services.router.flows.jobs.reconcile_schedule import ReconcileSchedule

DAY = 86400.0


@pytest.mark.parametrize(
    ("seconds", "alert"), [(0.0, ""), (5.0, ""), (5.1, "clocks are 5 s"), (86400.0, "clocks are 86400 s apart")]
)
def test_clocks_that_differ_are_an_alert(seconds: float, alert: str) -> None:
    said = "".join(clock_warning(seconds))
    assert said.startswith(alert) and bool(said) == bool(alert)


class Known:
    """The jobs of a router: those that are known, and those that were asked for."""

    trouble = ""

    def __init__(self, *jobs: Job) -> None:
        self.view = jobs
        self.started = 0

    def latest(self, lane: str) -> Job | None:
        return next((job for job in self.view if job.lane == lane), None)

    async def job(self, job_id: str) -> Job:
        return next(job for job in self.view if job.id == job_id)

    async def start(self, *_: object) -> None:
        self.started += 1


@pytest.mark.parametrize("days", [-1.0, 0.0, 1.0])
async def test_a_comparison_is_put_off_by_no_clock_that_has_jumped(days: float) -> None:
    """The last one ended by a clock that was so far ahead."""
    clock = ManualClock()
    ended = clock.now() + 86400 * days
    done = Job("backfill", TO_B, "ann", {}, id="backfill-1", state=JobState.FINISHED, ended_seconds=ended)
    jobs = Known(done)
    reconciling = ReconcileSchedule(jobs, 900.0, clock)  # type: ignore[arg-type]
    await reconciling.look()
    assert jobs.started == (days < 0)
    clock.advance(900.0)
    await reconciling.look()
    assert jobs.started == 1 + (days < 0)


@pytest.mark.parametrize(("days", "verdict"), [(1.0, Verdict.INCONCLUSIVE), (0.0, Verdict.PASS), (-8.0, Verdict.FAIL)])
async def test_evidence_that_is_dated_in_the_future_is_of_no_known_age(days: float, verdict: Verdict) -> None:
    """It was made by a router whose clock was so far ahead, and would stay fresh until that day."""
    clock = ManualClock()
    ended = clock.now() + 86400 * days
    done = Job("audit", audit.LANE, "ann", {}, id="audit-1", state=JobState.FINISHED, ended_seconds=ended)
    audited = replace(done, report=AuditReport(records=7, total=7).to_json())
    compared = replace(done, lane="reconcile", id="reconcile-1", report=Findings(records=7).to_json())
    rehearsed = replace(done, lane=rehearsal.NAME, id="rehearsal-1", report=rehearsal.Result(True, "").to_json())
    jobs = Known(audited, compared, rehearsed)
    last_audit = audit.LastAudit(jobs, clock)  # type: ignore[arg-type]
    stores = ReconcileSchedule(jobs, 0.0, clock)  # type: ignore[arg-type]
    await last_audit.look()
    await stores.look()
    rehearsals = rehearsal.Rehearsals(jobs, None, None, None, clock)  # type: ignore[arg-type]
    await rehearsals.last.look()
    seen = rehearsals.evidence(last_audit.evidence(stores.evidence(Evidence())))
    found = {one.name: one.verdict for one in check(["audit", "rehearsal", "shadow-consistent"], agreeing(seen))}
    # A comparison that is too old shows nothing, whatever it found.
    consistent = Verdict.INCONCLUSIVE if verdict is Verdict.FAIL else verdict
    assert found == {"audit": verdict, "rehearsal": verdict, "shadow-consistent": consistent}


class Skewed(ManualClock):
    """A clock whose wall time is ahead by so much."""

    ahead_seconds = 0.0

    def now(self) -> float:
        return self.seconds + self.ahead_seconds


async def test_a_clock_that_is_set_back_makes_no_evidence_younger() -> None:
    """Old evidence stays too old, and new evidence ages. A clock that is corrected later changes nothing."""
    clock = Skewed()
    done = Job("audit", audit.LANE, "ann", {}, id="audit-1", state=JobState.FINISHED, ended_seconds=clock.now())
    audited = replace(done, report=AuditReport(records=7, total=7).to_json())
    compared = replace(done, lane="reconcile", id="reconcile-1", report=Findings(records=7).to_json())
    jobs = Known(audited, compared)
    last_audit = audit.LastAudit(jobs, clock)  # type: ignore[arg-type]
    stores = ReconcileSchedule(jobs, 0.0, clock)  # type: ignore[arg-type]
    await last_audit.look()
    await stores.look()
    for elapsed, ahead in ((0.0, 0.0), (3 * DAY, -2 * DAY), (5 * DAY, -2 * DAY), (0.0, 0.0), (0.0, -9 * DAY)):
        clock.advance(elapsed)
        clock.ahead_seconds = ahead
        seen = last_audit.evidence(stores.evidence(Evidence()))
        real = clock.monotonic() - done.ended_seconds
        assert seen.compared is not None
        assert (seen.audit_seconds_ago, seen.compared.seconds_ago) == (real, real)


async def test_evidence_grows_old_from_the_first_look_at_it() -> None:
    """No gate has asked before the clock was set back."""
    clock = Skewed()
    done = Job("audit", audit.LANE, "ann", {}, id="audit-1", state=JobState.FINISHED, ended_seconds=clock.now())
    jobs = Known(
        replace(done, report=AuditReport(records=7, total=7).to_json()),
        replace(done, lane="reconcile", id="reconcile-1", report=Findings(records=7).to_json()),
    )
    last_audit = audit.LastAudit(jobs, clock)  # type: ignore[arg-type]
    stores = ReconcileSchedule(jobs, 0.0, clock)  # type: ignore[arg-type]
    await last_audit.look()
    await stores.look()
    clock.advance(8 * DAY)
    clock.ahead_seconds = -8 * DAY
    seen = last_audit.evidence(stores.evidence(Evidence()))
    assert seen.compared is not None
    assert (seen.audit_seconds_ago, seen.compared.seconds_ago) == (8 * DAY, 8 * DAY)


def test_an_age_follows_a_clock_that_is_right_again_and_begins_anew_with_each_date() -> None:
    clock = Skewed()
    age, date = Age(clock), clock.now() - DAY
    assert age.seconds(date) == DAY
    clock.ahead_seconds = 3 * DAY
    assert age.seconds(date) == 4 * DAY
    clock.ahead_seconds = 0.0
    assert age.seconds(date) == DAY
    clock.ahead_seconds = -DAY
    assert (age.seconds(date), age.seconds(clock.now() - 5.0)) == (DAY, 5.0)


def agreeing(evidence: Evidence) -> Evidence:
    """With enough compared reads that agree."""
    return replace(evidence, shadow=ShadowCounts(30_000, 30_000))

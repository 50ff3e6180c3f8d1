"""Clocks that differ are shown, and change nothing else."""

from dataclasses import replace

import pytest

from libs.clock import ManualClock
from services.router.core.audit import AuditReport
from services.router.core.evidence import Evidence, Limits
from services.router.core.gates import Verdict, judge
from services.router.core.jobs import Job, JobState
from services.router.core.last_step import clock_alert
from services.router.core.measure import ShadowCounts
from services.router.core.reconcile import Findings
from services.router.flows import audit
from services.router.flows.backfill import TO_B
from services.router.flows.measure import rehearsed
from services.router.flows.reconciling import Reconciling
from services.router.flows.rehearsal import Result


@pytest.mark.parametrize(
    ("seconds", "alert"), [(0.0, ""), (5.0, ""), (5.1, "clocks are 5 s"), (86400.0, "clocks are 86400 s apart")]
)
def test_clocks_that_differ_are_an_alert(seconds: float, alert: str) -> None:
    said = clock_alert(Evidence(clocks_apart_seconds=seconds), Limits())
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
    reconciling = Reconciling(jobs, 900.0, clock)  # type: ignore[arg-type]
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
    jobs = Known(audited, compared)
    last_audit = audit.LastAudit(jobs, clock)  # type: ignore[arg-type]
    stores = Reconciling(jobs, 0.0, clock)  # type: ignore[arg-type]
    await last_audit.look()
    await stores.look()
    last = Result("1", "ann", True, "", ended, (1,))
    seen = rehearsed(last_audit.evidence(stores.evidence(Evidence())), last, clock.now())
    found = {one.name: one.verdict for one in judge(["audit", "rehearsal", "shadow-consistent"], agreeing(seen))}
    # A comparison that is too old shows nothing, whatever it found.
    consistent = Verdict.INCONCLUSIVE if verdict is Verdict.FAIL else verdict
    assert found == {"audit": verdict, "rehearsal": verdict, "shadow-consistent": consistent}


def agreeing(evidence: Evidence) -> Evidence:
    """With enough compared reads that agree."""
    return replace(evidence, shadow=ShadowCounts(30_000, 30_000))

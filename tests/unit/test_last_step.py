"""Clocks that differ are shown, and change nothing else."""

import pytest

from libs.clock import ManualClock
from services.router.core.evidence import Evidence, Limits
from services.router.core.jobs import Job, JobState
from services.router.core.last_step import clock_alert
from services.router.flows.backfill import TO_B
from services.router.flows.reconciling import Reconciling


@pytest.mark.parametrize(("seconds", "alert"), [(0.0, ""), (5.0, ""), (86400.0, "clocks are 86400 s apart")])
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

"""The strip of all buckets, and the canary. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.ownership.model import BUCKETS
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.web.view.words import NOT_KNOWN, count, duration, percent, store

ROW_BUCKETS = 256
"""Buckets in one row of the strip, so that one bucket is visible on a phone."""
STALE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Segment:
    x: int
    width: int
    owner: str
    """a, b or none."""
    target: str
    mark: str
    """way, rehearsal, seized or ""."""


@dataclass(frozen=True, slots=True)
class StripRow:
    first: int
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Strip:
    rows: Sequence[StripRow]
    totals: Sequence[tuple[str, str, int]]
    """Name of the mark, label, number of buckets."""
    age: str
    """Age of the picture, if it is not current."""
    handover: str
    """Progress of the mover, in words."""


@dataclass(frozen=True, slots=True)
class Canary:
    is_open: bool
    """The phase has a canary."""
    wanted: str
    actual: str
    """Percent of the buckets that are at B."""
    wanted_width: float
    actual_width: float
    """Both widths: lengths of 100."""
    cohorts: Sequence[tuple[str, str, str]]
    """Name, rule and percentage of each cohort."""
    walk: str
    """The step of the plan and the reason for waiting; "" without a plan."""
    walk_runs: bool


def strip(status: pb.GetStatusResponse) -> Strip:
    segments = [_segment(run) for run in status.bucket_runs]
    rows = [_row(segments, first) for first in range(0, BUCKETS, ROW_BUCKETS)] if segments else []
    age = status.buckets_age_seconds if status.HasField("buckets_age_seconds") else None
    stale = age is not None and age > STALE_SECONDS
    return Strip(rows, _totals(segments), f"as of {duration(age)} ago" if stale else "", handover(status.handover))


def _segment(run: pb.BucketRun) -> Segment:
    owner = store(run.owner).lower() or "none"
    mark = "rehearsal" if run.rehearsal else "way" if run.on_the_way else "seized" if run.seized else ""
    return Segment(run.first, run.count, owner, store(run.target).lower(), mark)


def _row(segments: Sequence[Segment], first: int) -> StripRow:
    end = first + ROW_BUCKETS
    cut = []
    for one in segments:
        left, right = max(one.x, first), min(one.x + one.width, end)
        if left < right:
            cut.append(Segment(left - first, right - left, one.owner, one.target, one.mark))
    return StripRow(first, cut)


def _totals(segments: Sequence[Segment]) -> list[tuple[str, str, int]]:
    def number(*, owner: str = "", mark: str = "") -> int:
        return sum(one.width for one in segments if owner in ("", one.owner) and mark in ("", one.mark))

    named = [
        ("a", "owned by A", number(owner="a")),
        ("b", "owned by B", number(owner="b")),
        ("none", "owner not known", number(owner="none")),
        ("way", "on the way", number(mark="way")),
        ("rehearsal", "rehearsal", number(mark="rehearsal")),
        ("seized", "seized", number(mark="seized")),
    ]
    return [one for one in named if one[2] or one[0] in ("a", "b")]


def canary(status: pb.GetStatusResponse) -> Canary:
    at_b = status.permille_at_b if status.HasField("permille_at_b") else None
    wanted = status.setting.canary_permille
    walk, cohorts = status.canary_auto, status.setting.cohorts
    step = f"step {walk.done} of {walk.total}: {walk.note}" if walk.total else ""
    return Canary(
        is_open=status.setting.phase == pb.PHASE_DUAL_WRITE,
        wanted=percent(wanted),
        actual=percent(at_b),
        wanted_width=wanted / 10,
        actual_width=(at_b or 0) / 10,
        cohorts=[(one.name, one.names or f"account {one.account}", percent(one.permille)) for one in cohorts],
        walk=step,
        walk_runs=walk.running,
    )


def handover(progress: pb.Progress) -> str:
    if not progress.running:
        return progress.note
    left = f", about {duration(progress.eta_seconds)} left" if progress.HasField("eta_seconds") else ""
    total = count(progress.total) if progress.total else NOT_KNOWN
    return f"{count(progress.done)} of {total} records, {count(round(progress.rate))}/s{left}"

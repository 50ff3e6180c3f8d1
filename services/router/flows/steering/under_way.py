"""Unfinished work, which blocks the step to a phase without rollback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from libs.ownership.model import Store
from services.router.core.jobs import Job
from services.router.flows.stores import StoreViews


class JobView(Protocol):
    @property
    def view(self) -> Sequence[Job]: ...

    trouble: str


class Moves(Protocol):
    @property
    def settled(self) -> bool: ...

    on_their_way: int
    """Records that no store owned at the last look."""


def under_way(jobs: JobView, moves: Moves, views: StoreViews) -> tuple[str, ...] | None:
    """List open jobs, moves, recoveries and conflicts, one text each; None if unknown."""
    found = [f"job {job.id} is {job.state.value}" for job in jobs.view if not job.state.ended]
    if not moves.settled:
        found.append("buckets are on their way")
    if moves.on_their_way:
        # The event of a bulk release does not always bring its records home, and after this step A may be switched off.
        found.append(f"{moves.on_their_way} records are on their way")
    for store in Store:
        view = views.view(store)
        if view.status is None:
            return None
        if not view.reachable:
            found.append(f"store {store} is out of reach")
        status = view.status
        if not status.serving:
            found.append(f"store {store} does not serve: {status.reason}")
        if status.feed.trouble:
            found.append(f"the feed of store {store} stands still: {status.feed.trouble}")
        if status.feed.parked_now:
            found.append(f"store {store} has {status.feed.parked_now} parked events")
        if status.conflicts:
            found.append(f"store {store} has {status.conflicts} unresolved conflicts")
    return None if jobs.trouble else tuple(found)

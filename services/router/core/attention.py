"""What a person must look at now, from what a router knows of the whole system. Pure.

Gates, automatic rollback and the ledger add what they find themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.text import plain
from services.router.core.measure import Counts

LEAST_CALLS = 20
"""Of fewer calls a share of faults says little."""
LEAST_FAULTS = 3


@dataclass(frozen=True, slots=True)
class StoreSeen:
    name: str
    """A or B."""
    reachable: bool
    serving: bool
    trouble: str
    feed_trouble: str
    parked: int
    recent: Counts
    """Calls of the last half minute, over all routers."""


def attention(
    stores: Sequence[StoreSeen], log_trouble: str, failed_jobs: Sequence[str], fault_rate: float
) -> list[str]:
    """`fault_rate`: the share of faults that no store should exceed. `failed_jobs`: id and note of each."""
    found = [line for store in stores for line in _of_store(store, fault_rate)]
    if log_trouble:
        found.append(f"the event log is out of reach, so neither store follows the other: {log_trouble}")
    found += [f"{job}: baton jobs resume or cancel" for job in failed_jobs]
    return found


def _of_store(store: StoreSeen, fault_rate: float) -> list[str]:
    found = []
    if not store.reachable:
        found.append(f"store {store.name} is out of reach: {store.trouble or 'no answer'}")
    elif not store.serving:
        found.append(f"store {store.name} does not serve: {store.trouble or 'baton doctor says more'}")
    calls, faults = store.recent.calls, store.recent.faults
    if calls >= LEAST_CALLS and faults >= LEAST_FAULTS and faults > fault_rate * calls:
        share = plain(100 * faults / calls)
        found.append(f"{share} % of {calls} calls to store {store.name} failed by its fault in half a minute")
    if store.reachable and store.feed_trouble:
        found.append(f"the feed into store {store.name} stands still: {store.feed_trouble}")
    if store.parked:
        found.append(f"store {store.name} could not apply {store.parked} events: baton events parked")
    return found

"""Alerts in the status of a router that are not about a gate. Pure.

Gates (`Gate.warnings`), automatic rollback and the ledger add theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.text import plain
from libs.tls.files import WARN_DAYS
from services.router.core.measure import Counts

LEAST_CALLS = 20
"""Fewer calls give no share of faults."""
LEAST_FAULTS = 3

CLOCKS_APART_SECONDS = 5.0
"""A larger difference between clocks is an alert. No clock orders or expires anything."""


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
    """Calls of the last half minute, at all routers."""
    unauthenticated: int = 0
    """Part of `parked`."""
    locks_away: bool = False
    """One of its processes cannot reach the lock server."""
    missing: int = 0
    """Addresses of it without a process that answers."""


def attention(
    stores: Sequence[StoreSeen], log_trouble: str, failed_jobs: Sequence[str], fault_rate: float
) -> list[str]:
    """Lines for "look at this", causes before their effects. `fault_rate`: the largest share of faults without an
    alert. `failed_jobs`: the id and note of each."""
    found = [line for store in stores for line in _outages(store)]
    if log_trouble:
        found.append(f"the event log is unreachable, so neither store follows the other: {log_trouble}")
    found += [line for store in stores for line in _of_store(store, fault_rate)]
    found += [f"{job}: baton jobs resume or cancel" for job in failed_jobs]
    return found


def clock_warning(apart_seconds: float) -> list[str]:
    """`apart_seconds`: the largest difference between the clocks of this router, of the stores and of the log."""
    if apart_seconds <= CLOCKS_APART_SECONDS:
        return []
    shown = f"clocks are {apart_seconds:.0f} s apart: displayed times and ages are wrong"
    return [f"{shown}; synchronize them by NTP (baton doctor names them)"]


def certificate_warnings(owner: str, days: float | None, reload_trouble: str) -> list[str]:
    """`owner`: the process whose certificate expires in `days`; None: it has none. `reload_trouble`: why its replaced
    files are not in force."""
    found = []
    if days is not None and days < WARN_DAYS:
        when = f"expires in {days:.1f} days" if days > 0 else "has expired"
        found.append(f"the certificate of {owner} {when}: renew it, the process reads it again by itself")
    if reload_trouble:
        found.append(f"the last good certificate of {owner} stays in force: {reload_trouble}")
    return found


def _outages(store: StoreSeen) -> list[str]:
    if not store.reachable:
        return [f"store {store.name} is unreachable: {store.trouble or 'no answer'}"]
    if not store.serving:
        return [f"store {store.name} does not serve: {store.trouble or 'see baton doctor'}"]
    if store.locks_away:
        return [f"store {store.name} cannot reach its lock server: leases are refused, busy records are slower"]
    return []


def _of_store(store: StoreSeen, fault_rate: float) -> list[str]:
    found = []
    calls, faults = store.recent.calls, store.recent.faults
    if calls >= LEAST_CALLS and faults >= LEAST_FAULTS and faults > fault_rate * calls:
        share = plain(100 * faults / calls)
        found.append(f"{share} % of {calls} calls to store {store.name} failed by its fault in half a minute")
    if store.reachable and store.missing:
        found.append(f"store {store.name} has lacked {store.missing} of its processes for a minute: baton doctor")
    if store.reachable and store.feed_trouble:
        found.append(f"the feed into store {store.name} has stopped: {store.feed_trouble}")
    if other := store.parked - store.unauthenticated:
        found.append(f"store {store.name} could not apply {other} events: baton events parked")
    if store.unauthenticated:
        found.append(
            f"store {store.name} has refused {store.unauthenticated} events without a right code: somebody else writes"
            " to the topic, or keys differ: baton doctor"
        )
    return found

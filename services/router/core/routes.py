"""Direct routes: the calls that clients may send to a store without a router in between. Pure.

A route is a hint, as a phase is: a store that gets a call directly checks the record's row, and passes the call on to a
router if it cannot answer as owner. So a route may be old at a client, and costs a hop then, never a write.

A call of a method goes to a store directly only if all of this holds; every other call goes to a router:

1. The method names one record. Lists and watches need both stores.
2. The store is the target of the call, and the home of the bucket by the lasting flags: no change is about to happen.
3. The bucket is settled there: the store owns the bucket and every record in it.
4. The store serves, and reports its direct calls: those of an earlier release escape gates and automatic rollback.
5. No router is needed: the bucket is not in a rehearsal, whose calls the routers count, no cohort wants records of the
   bucket elsewhere, since a route sees the bucket and not the name, and the call is not a write in a phase that
   acknowledges writes from the log.

A share of the direct calls still goes through a router (`RpcRoutes.sampled_permille`): the comparison of reads, the
ledger and the gates need some calls there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from libs.ownership.model import BUCKETS, Store
from services.router.core.phase import Phase, Setting
from services.router.core.plan import Flags, home, kinds, target

Settled = Sequence[Store | None]
"""Store that owns the bucket and all its records, by bucket; None while it moves, or if that is unknown."""

UNKNOWN: Settled = (None,) * BUCKETS

LEAST_SAMPLE_PERMILLE = 10
"""Default share of the direct calls that still go through a router."""


class Rpc(NamedTuple):
    """A method of the contract, as far as its route depends on it."""

    path: str
    operation: str
    is_read: bool
    is_keyed: bool
    """The method names one record: it is neither a list nor a watch."""


class Run(NamedTuple):
    """Consecutive buckets of one store."""

    first: int
    end: int
    """The bucket after the last one."""
    store: Store


@dataclass(frozen=True, slots=True)
class RpcRoutes:
    """The direct routes of one method. Buckets without a run go to a router."""

    path: str
    runs: tuple[Run, ...] = ()
    """Disjoint, ordered by bucket, as few as possible."""
    sampled_permille: int = 0
    """Share of the calls of each run that still go to a router."""


@dataclass(frozen=True, slots=True)
class Routes:
    generation: int = 0
    """Generation of the setting that they follow."""
    rpcs: tuple[RpcRoutes, ...] = ()
    """All methods of the contract, in its order."""

    def direct_at(self, store: Store) -> Mapping[str, tuple[Run, ...]]:
        """The runs of one store, by path of the method; without the methods that have none."""
        found = {rpc.path: tuple(run for run in rpc.runs if run.store is store) for rpc in self.rpcs}
        return {path: runs for path, runs in found.items() if runs}


NO_ROUTES = Routes()
"""Every call goes to a router."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that routes depend on, apart from the contract and the router's settings."""

    setting: Setting
    flags: Flags
    """The flags that steer calls."""
    lasting_flags: Flags
    """The flags that move records."""
    settled: Settled
    serving: Collection[Store]
    """Stores with a process that serves clients."""


def routes(
    facts: Facts,
    rpcs: Sequence[Rpc],
    logged: Collection[Phase] = (),
    least_permille: int = LEAST_SAMPLE_PERMILLE,
) -> Routes:
    """`logged`: phases that acknowledge writes from the log."""
    setting = facts.setting
    if not setting.generation:
        return NO_ROUTES
    free = _free(facts)
    runs: dict[tuple[Store, ...], tuple[Run, ...]] = {}

    def of(rpc: Rpc) -> RpcRoutes:
        if not rpc.is_keyed or (not rpc.is_read and setting.phase in logged):
            return RpcRoutes(rpc.path)
        targets = tuple(target(setting, facts.flags, rpc.operation, kind.first).store for kind in kinds(setting))
        if targets not in runs:
            runs[targets] = _merged(setting, free, targets)
        return RpcRoutes(rpc.path, runs[targets], sample_permille(setting, least_permille, is_read=rpc.is_read))

    return Routes(setting.generation, tuple(of(rpc) for rpc in rpcs))


def sample_permille(setting: Setting, least_permille: int, *, is_read: bool) -> int:
    """Share of the direct calls that go through a router; 0 in a phase that needs no evidence."""
    if not setting.rule.sampled:
        return 0
    return max(least_permille, setting.shadow_permille if is_read else 0)


def _free(facts: Facts) -> list[Store | None]:
    """Return the store that any call could reach directly, by bucket; None if a router is needed."""
    setting, serving = facts.setting, [store for store in Store if store in facts.serving]
    found: list[Store | None] = [None] * BUCKETS
    for kind in kinds(setting):
        at = home(setting, facts.lasting_flags, kind.first)
        if at in serving and not kind.in_rehearsal and not kind.is_mixed:
            for bucket in kind.buckets:
                found[bucket] = at if facts.settled[bucket] is at else None
    return found


def _merged(setting: Setting, free: Sequence[Store | None], targets: Sequence[Store]) -> tuple[Run, ...]:
    """The runs of the buckets that are free at the call's target, which is given for each kind of bucket."""
    direct: list[Store | None] = [None] * BUCKETS
    for kind, aim in zip(kinds(setting), targets, strict=True):
        for bucket in kind.buckets:
            direct[bucket] = aim if free[bucket] is aim else None
    runs, first = [], 0
    for store, some in groupby(direct):
        end = first + sum(1 for _ in some)
        if store is not None:
            runs.append(Run(first, end, store))
        first = end
    return tuple(runs)

"""The current direct routes at this router, for clients with xDS and for the stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from libs.contract.descriptors import Contract
from libs.ownership.model import Store
from libs.store.concurrency import Notifier
from libs.tasks import Loop
from services.router.core.phase import Phase
from services.router.core.plan import Flags
from services.router.core.routes import NO_ROUTES, Facts, Routes, Rpc, Settled, routes
from services.router.flows.steering_view import Steering

LOOK_SECONDS = 0.05
"""Interval between two looks at changes that give no notice: flags of a provider, and buckets that have arrived."""


class LastingSteering(Steering, Protocol):
    when_changed: list[Callable[[], None]]
    """Called with each change of the setting."""

    @property
    def lasting_flags(self) -> Flags:
        """Flags without short-lived values, which do not move records."""
        ...


class SettledBuckets(Protocol):
    @property
    def at_home(self) -> Settled:
        """Home of each bucket, if the bucket and all its records are there."""
        ...


class DirectRoutes:
    """`look` computes the routes anew if anything that they depend on has changed."""

    def __init__(
        self,
        contract: Contract,
        steering: LastingSteering,
        mover: SettledBuckets,
        logged: Collection[Phase],
        least_permille: int,
    ) -> None:
        self._rpcs = rpcs_of(contract)
        self._steering = steering
        steering.when_changed.append(self.look)
        self._mover = mover
        self._logged = logged
        self._least_permille = least_permille
        self._facts: Facts | None = None
        self.serving: frozenset[Store] = frozenset()
        """Stores with a process that serves clients. Call `look` after a change."""
        self.reporting: frozenset[Store] = frozenset(Store)
        """Stores that report their direct calls: those of others would escape gates and automatic rollback."""
        self.current: Routes = NO_ROUTES
        self.changes = Notifier()
        self.loop = Loop("direct routes", self._body)

    def look(self) -> None:
        steering = self._steering
        serving = self.serving & self.reporting
        facts = Facts(steering.current, steering.flags, steering.lasting_flags, self._mover.at_home, serving)
        if facts == self._facts:
            return
        self._facts = facts
        found = routes(facts, self._rpcs, self._logged, self._least_permille)
        if found != self.current:
            self.current = found
            self.changes.notify()

    async def _body(self, loop: Loop) -> None:
        self.look()
        loop.well()
        await asyncio.sleep(LOOK_SECONDS)


def rpcs_of(contract: Contract) -> tuple[Rpc, ...]:
    return tuple(
        Rpc(
            method.path,
            method.operation,
            method.is_read,
            method.key is not None and method.shape is None and method.watch is None,
        )
        for method in contract.methods.values()
    )

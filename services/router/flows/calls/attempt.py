"""One call to one store, measured."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

import grpc

from libs.clock import Clock
from libs.ownership.errors import NotOwner
from libs.ownership.model import Store
from services.router.core.measure import Meter
from services.router.flows.stores import Refused

T = TypeVar("T")


class Attempt(NamedTuple):
    """One call to one store, of a method of the contract."""

    store: Store
    operation: str
    is_read: bool
    timeout_seconds: float
    as_owner: bool = True
    """False: ask for the store's row even if it does not own the record."""
    again: bool = False
    """The store did not answer this call before. `patience` counts the faults while the call waits."""


async def measured(meter: Meter, clock: Clock, attempt: Attempt, answering: Awaitable[T]) -> T:
    """Await `answering` and measure it.

    A cancelled caller leaves no measurement. Neither does a deadline that was too short: the error is marked as not the
    store's fault.
    """
    began = clock.monotonic()
    try:
        answer = await answering
    except NotOwner:
        meter.denied(attempt.store, clock.monotonic())
        raise
    except Refused as refused:
        now = clock.monotonic()
        passed = refused.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        refused.too_short = passed and not meter.is_late(attempt.store, began, now)
        if not refused.too_short and not (attempt.again and refused.is_fault):
            _add(meter, attempt, began, now, fault=refused.is_fault)
        raise
    _add(meter, attempt, began, clock.monotonic(), fault=False)
    return answer


def _add(meter: Meter, attempt: Attempt, began: float, now: float, *, fault: bool) -> None:
    store, operation, is_read, _, as_owner, _ = attempt
    if as_owner or fault:
        meter.add(store, operation, is_read, now - began, fault, now)
    else:
        meter.denied(store, now)

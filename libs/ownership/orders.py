"""Orders of a recovery, and which of them are late. Pure.

A recovery is a job that any router may run. A router that was paused may send an order after the job has ended, or
after a later recovery has begun. So each order carries the number and the stage of its job, and both only grow. Both
stores keep the highest order that they have taken. A store that starts adopts the higher of the two, because its own
database may be a restored one.

Job numbers of different control stores are not comparable. So a store refuses the orders of another control store
until a person adopts that control store. The adoption begins a new epoch, which ranks above every number of the former
control store.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from libs.errors import BatonError


class LateOrder(BatonError):
    """The store has already taken a later order of a recovery. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECOVERY_OVER"


class ForeignControl(BatonError):
    """The order comes from another control store than the one that this store follows. Nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "FOREIGN_CONTROL"


class Order(NamedTuple):
    """An order of a recovery. Orders compare by `rank`."""

    epoch: int
    """Grows with each adoption of another control store."""
    number: int
    """Number of the job."""
    stage: int
    """Number of the job's stage. Later stages have higher numbers."""
    control: str
    """Id of the control store that keeps the job."""
    job: str

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.epoch, self.number, self.stage

    def __str__(self) -> str:
        return f"{self.job} of control store {self.control}"


def check_order(kept: Order | None, order: Order | None) -> None:
    """Check that a store whose highest order is `kept` may take the order. None: a router of an earlier release sent
    no number.

    Raises LateOrder, ForeignControl.
    """
    if kept is None:
        return
    if order is None:
        raise LateOrder(f"the order has no number, but the store has taken an order of {kept}: update the router")
    if order.control != kept.control and order.epoch <= kept.epoch:
        raise ForeignControl(
            f"the order comes from {order}, but the store follows {kept}: if that control store is lost, use"
            " baton recover --adopt-control"
        )
    if order.rank < kept.rank:
        raise LateOrder(
            f"the order of {order} is late: the store has taken a later one, of {kept}. If the control store was"
            f" restored from a backup, start the recovery again until the job's number is above {kept.number}"
        )


def higher(one: Order | None, other: Order | None) -> Order | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda order: order.rank)


def order_text(order: Order | None) -> str:
    return json.dumps(order._asdict()) if order is not None else ""


def order_of(text: str) -> Order | None:
    return Order(**json.loads(text)) if text else None

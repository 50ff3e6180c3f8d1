"""Orders of a recovery: which one is late. Pure.

A recovery is a job that any router runs, so a router that was paused may send an order when the job has ended, or when
a later one has begun. Each order carries its job's number and stage, which only grow. Both stores keep the highest
order that they took; a store that starts takes the higher one of the two, since its own database may be a restored one.

Numbers of different control stores say nothing of each other. So orders of another control store than the one that is
kept are refused, until a person adopts it: that begins a new epoch, which is above all numbers of the former one.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from libs.errors import BatonError


class LateOrder(BatonError):
    """A later order of a recovery was taken already: nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "RECOVERY_OVER"


class ForeignControl(BatonError):
    """The order comes from another control store than the one that this store follows: nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "FOREIGN_CONTROL"


class Order(NamedTuple):
    """Compared by epoch, number and stage."""

    epoch: int
    """Grows when another control store is adopted."""
    number: int
    """Of the job."""
    stage: int
    """Of the job's stages, in their order."""
    control: str
    """Id of the control store that keeps the job."""
    job: str

    @property
    def place(self) -> tuple[int, int, int]:
        return self.epoch, self.number, self.stage

    def __str__(self) -> str:
        return f"{self.job} of control store {self.control}"


def check_order(kept: Order | None, order: Order | None) -> None:
    """Whether a store that keeps `kept` takes the order. None: an earlier release sends no numbers.

    Raises LateOrder, ForeignControl.
    """
    if kept is None:
        return
    if order is None:
        raise LateOrder(f"the order has no number, and the store has taken one of {kept}: update the router")
    if order.control != kept.control and order.epoch <= kept.epoch:
        raise ForeignControl(
            f"the order is of {order}, the store follows {kept}: if that control store is lost, use"
            " baton recover --adopt-control"
        )
    if order.place < kept.place:
        raise LateOrder(
            f"the order of {order} is late: the store has taken a later one, of {kept}. If the control store was"
            f" restored from a backup, order it again until its number is above {kept.number}"
        )


def higher(one: Order | None, other: Order | None) -> Order | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda order: order.place)


def order_text(order: Order | None) -> str:
    return json.dumps(order._asdict()) if order is not None else ""


def order_of(text: str) -> Order | None:
    return Order(**json.loads(text)) if text else None

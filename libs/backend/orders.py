"""Orders of a recovery, as messages."""

from __future__ import annotations

from libs.ownership.orders import Order
from libs.pb.baton.replication.v1 import recovery_pb2 as pb


def order_to_pb(order: Order) -> pb.Order:
    return pb.Order(control=order.control, epoch=order.epoch, job=order.job, number=order.number, stage=order.stage)


def order_from_pb(order: pb.Order) -> Order:
    return Order(order.epoch, order.number, order.stage, order.control, order.job)

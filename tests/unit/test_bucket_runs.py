"""Runs of equal buckets."""

from __future__ import annotations

from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.record.v1 import record_pb2
from services.router.api.status import run_to_pb
from services.router.core.bucket_runs import BucketRun, BucketState, runs

AT_A = BucketState(Store.A, Store.A, arrived=True)
MOVING = BucketState(None, Store.B, arrived=False)


def test_equal_neighbours_are_one_run_and_no_bucket_is_left_out() -> None:
    states = [AT_A, AT_A, MOVING, AT_A]
    assert runs(states) == [BucketRun(0, 2, AT_A), BucketRun(2, 1, MOVING), BucketRun(3, 1, AT_A)]
    assert runs([]) == []


def test_a_bucket_without_an_owner_has_an_unspecified_one() -> None:
    assert run_to_pb(BucketRun(2, 1, MOVING)) == pb.BucketRun(
        first=2, count=1, target=record_pb2.STORE_B, on_the_way=True
    )
    seized = BucketState(Store.A, Store.A, arrived=True, in_rehearsal=True, seized=True)
    assert run_to_pb(BucketRun(0, 9, seized)) == pb.BucketRun(
        count=9, owner=record_pb2.STORE_A, target=record_pb2.STORE_A, rehearsal=True, seized=True
    )

"""Differences that a contract allows: they count apart from those that it does not, and from equal answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from libs.clock import ManualClock
from libs.contract.unfit import UnfitContract
from libs.ownership.model import Version
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox
from libs.pb.sandbox.v1.sandbox_service_pb2 import ListSandboxesResponse
from services.router.control.memory import MemoryControlStore
from services.router.core.compare import Comparison, Kind, ShownRecord
from services.router.core.comparison_rules import Rules
from services.router.core.measure import Meter, ShadowCounts
from services.router.core.tally import Tally
from services.router.flows.steering.measure import Measurement
from services.router.flows.steering.report import Measured
from tests.integration.test_shadow_cli import CONTRACT

GET, LIST = CONTRACT.methods["GetSandbox"], CONTRACT.methods["ListSandboxes"]
TIMES = (("update_time", 1500),)
RULED = replace(GET, unordered_reply_fields=("spec.command",), tolerated_reply_times=TIMES)


def at(seconds: int, nanos: int = 0, **fields: Any) -> Sandbox:
    return Sandbox(name="sandboxes/x", update_time=Timestamp(seconds=seconds, nanos=nanos), **fields)


def run(*command: str) -> Sandbox:
    return at(5, spec={"command": command})


def compared(one: Any, other: Any, comparison: Comparison) -> tuple[Kind, tuple[str, ...]]:
    left, right = (ShownRecord(Version(0, 1), side.SerializeToString()) for side in (one, other))
    sight = comparison.sight(left, right)
    assert comparison.fields(left, right) == sight.fields
    assert comparison.kind_of_answers(left, right) is (None if sight.fields else sight.kind)
    return sight.kind, sight.fields


CASES = [
    (at(5), at(5), Kind.MATCH, ()),
    (at(5), at(6, 500_000_000), Kind.ALLOWED, ()),
    (at(6, 500_000_000), at(5), Kind.ALLOWED, ()),
    (at(5), at(6, 500_000_001), Kind.MISMATCH, ("update_time.seconds", "update_time.nanos")),
    (at(5), Sandbox(name="sandboxes/x"), Kind.MISMATCH, ("update_time",)),
    (at(5, account="a"), at(6, account="b"), Kind.MISMATCH, ("account",)),
    (run("a", "b", "a"), run("b", "a", "a"), Kind.ALLOWED, ()),
    (run("a", "b", "a"), run("b", "a", "b"), Kind.MISMATCH, ("spec.command",)),
    (run("a", "b"), run("a"), Kind.MISMATCH, ("spec.command",)),
]


@pytest.mark.parametrize(("one", "other", "kind", "fields"), CASES)
def test_a_difference_within_a_rule_is_allowed_and_no_other(
    one: Sandbox, other: Sandbox, kind: Kind, fields: tuple[str, ...]
) -> None:
    assert compared(one, other, Comparison.of(RULED)) == (kind, fields)
    if kind is Kind.ALLOWED:
        assert compared(one, other, Comparison.of(GET))[0] is Kind.MISMATCH, "without its rule"


def test_the_rules_of_a_list_hold_for_its_items_and_a_list_of_messages_may_be_unordered() -> None:
    inner = replace(LIST, tolerated_reply_times=(("sandboxes.update_time", 1500),))
    assert compared(at(5), at(6), Comparison.of(inner)) == (Kind.ALLOWED, ())
    whole = Comparison(ListSandboxesResponse, (), Rules(frozenset({"sandboxes"})))
    one, other = (ListSandboxesResponse(sandboxes=[at(second) for second in order]) for order in ((1, 2), (2, 1)))
    assert compared(one, other, whole) == (Kind.ALLOWED, ())
    later = ListSandboxesResponse(sandboxes=[at(2), at(3)])
    assert compared(one, later, whole)[0] is Kind.MISMATCH


@pytest.mark.parametrize(
    "rules",
    [
        {"unordered_reply_fields": ("none",)},
        {"unordered_reply_fields": ("labels",)},
        {"unordered_reply_fields": ("account",)},
        {"tolerated_reply_times": (("account", 5),)},
        {"tolerated_reply_times": (("update_time", 0),)},
    ],
)
def test_a_rule_that_does_not_fit_its_field_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(UnfitContract):
        Comparison.of(replace(GET, **rules))


def test_a_rule_into_a_map_is_refused_because_a_map_is_compared_as_a_whole() -> None:
    inside = "fields.value.list_value.values"
    with pytest.raises(UnfitContract, match=inside):
        Comparison(Struct, (), Rules(frozenset({inside})))


def test_allowed_differences_have_a_count_of_their_own() -> None:
    tally = Tally(1, 5)
    for kind in (Kind.MATCH, Kind.ALLOWED, Kind.ALLOWED, Kind.MISMATCH):
        tally.count("get", kind)
    counts = tally.counts(["get"])
    assert (counts.compared, counts.match, counts.allowed, counts.mismatch) == (4, 1, 2, 1)


def test_a_router_of_the_release_before_reads_the_counts_that_it_knows() -> None:
    mine = Measurement(MemoryControlStore(), Meter(), "router-1", ManualClock()).mine()
    mine = replace(mine, shadow=ShadowCounts(9, 2, allowed=7))
    fields = json.loads(mine.to_json())
    assert fields["shadow"] == [9, 2, 0, 0, 0, 0, 0]
    assert Measured.from_json(mine.to_json()) == mine
    del fields["allowed"]
    assert Measured.from_json(json.dumps(fields)).shadow == ShadowCounts(9, 2)

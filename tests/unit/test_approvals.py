"""The two-person rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.control.v1 import events_pb2
from services.router.api.approvals import STEPS
from services.router.api.roles import ELEVATED, ROLES
from services.router.core.approvals import (
    CallNotFound,
    OwnCall,
    TooManyCalls,
    approve,
    basis,
    live,
    record,
    same,
    set_two_person,
    withdraw,
)
from services.router.core.pending import CLOCKS_APART_SECONDS, EXPIRES_SECONDS, MAX_PENDING, PendingCall
from services.router.core.phase import IllegalMove, Outdated, Phase, Setting, noted, rollback, set_flag

NOW = 1_700_000_000.0
ON = Setting(generation=7, phase=Phase.CUTOVER, two_person=True)


def made(setting: Setting = ON, **changes: Any) -> PendingCall:
    call = PendingCall("c1", "StartJob", b"request", "idp:ann", "B is lost", basis(setting), NOW)
    return replace(call, **changes)


def waiting(setting: Setting = ON, **changes: Any) -> Setting:
    return record(setting, made(setting, **changes))


def test_a_call_is_recorded_and_taken_out_by_another_person_once() -> None:
    recorded = waiting()
    assert (recorded.generation, recorded.pending) == (8, (made(),))
    after, call = approve(recorded, "c1", "idp:bob", NOW + 1)
    assert (after.generation, after.pending, call) == (9, (), made())
    with pytest.raises(CallNotFound):
        approve(after, "c1", "idp:bob", NOW + 1)


def test_nobody_approves_a_call_of_their_own() -> None:
    with pytest.raises(OwnCall):
        approve(waiting(), "c1", "idp:ann", NOW + 1)


@pytest.mark.parametrize("seconds", [EXPIRES_SECONDS, -CLOCKS_APART_SECONDS - 1])
def test_a_call_expires(seconds: float) -> None:
    """Also one from a future that only a wrong clock makes."""
    recorded = waiting()
    assert live(recorded, NOW + EXPIRES_SECONDS - 1) == recorded.pending
    assert live(recorded, NOW + seconds) == ()
    with pytest.raises(CallNotFound, match="expire after 10 minutes"):
        approve(recorded, "c1", "idp:bob", NOW + seconds)


def test_a_call_on_another_setting_does_not_run() -> None:
    changed = set_flag(waiting(), "toy.routing.use_b", False)
    with pytest.raises(Outdated, match="the setting has changed since the call c1 was made"):
        approve(changed, "c1", "idp:bob", NOW + 1)


def test_journal_entries_about_other_things_leave_a_call_in_force() -> None:
    busy = record(noted(waiting()), made(id="c2", subject="idp:eve"))
    _, call = approve(busy, "c1", "idp:bob", NOW + 1)
    assert call == made()


def test_a_repeated_call_is_the_same_one() -> None:
    recorded = waiting()
    assert same(recorded, made(id="c2", seconds=NOW + 5)) == made()
    for other in (
        made(subject="idp:bob"),
        made(request=b"another"),
        made(seconds=NOW + EXPIRES_SECONDS),
        made(basis="another"),
    ):
        assert same(recorded, other) is None


def test_calls_that_wait_are_bounded_and_expired_ones_do_not_count() -> None:
    setting = ON
    for number in range(MAX_PENDING):
        setting = record(setting, made(id=f"c{number}"))
    with pytest.raises(TooManyCalls):
        record(setting, made(id="one-more"))
    late = made(id="later", seconds=NOW + EXPIRES_SECONDS)
    assert record(setting, late).pending == (late,)


def test_the_rule_is_switched_and_outlives_a_rollback() -> None:
    on = set_two_person(Setting(generation=1, phase=Phase.CUTOVER), on=True)
    assert (on.two_person, on.generation) == (True, 2)
    assert rollback(on, Phase.OFF).two_person
    with pytest.raises(IllegalMove, match="is on already"):
        set_two_person(on, on=True)


def test_a_call_is_taken_out_without_running() -> None:
    recorded = record(waiting(), made(id="c2"))
    after, call = withdraw(recorded, "c1", NOW + 1)
    assert (after.generation, after.pending, call) == (10, (made(id="c2"),), made())
    for gone, seconds in (("c1", 1.0), ("c2", EXPIRES_SECONDS)):
        with pytest.raises(CallNotFound):
            withdraw(after, gone, NOW + seconds)


@pytest.mark.parametrize(
    ("name", "request_", "needed"),
    [
        ("AdvancePhase", pb.AdvancePhaseRequest(to=pb.PHASE_DEPRECATED), True),
        ("AdvancePhase", pb.AdvancePhaseRequest(to=pb.PHASE_CUTOVER, override=True), False),
        ("StartJob", pb.StartJobRequest(kind="seize"), True),
        ("StartJob", pb.StartJobRequest(kind="recover", arguments={"store": "B"}), True),
        ("StartJob", pb.StartJobRequest(kind="recover", arguments={"recheck": "false"}), True),
        ("StartJob", pb.StartJobRequest(kind="recover", arguments={"recheck": "true"}), False),
        ("StartJob", pb.StartJobRequest(kind="backfill"), False),
        ("ChangeJob", pb.ChangeJobRequest(id="seize-1", action=pb.ChangeJobRequest.ACTION_RESUME), True),
        ("ChangeJob", pb.ChangeJobRequest(id="recover-7", action=pb.ChangeJobRequest.ACTION_RESUME), True),
        ("ChangeJob", pb.ChangeJobRequest(id="seize-1", action=pb.ChangeJobRequest.ACTION_CANCEL), False),
        ("ChangeJob", pb.ChangeJobRequest(id="backfill-1", action=pb.ChangeJobRequest.ACTION_RESUME), False),
        ("DropParked", events_pb2.DropParkedRequest(unauthenticated=True), True),
        ("DropParked", events_pb2.DropParkedRequest(), False),
        ("SetTwoPerson", pb.SetTwoPersonRequest(on=False), True),
        ("SetTwoPerson", pb.SetTwoPersonRequest(on=True), False),
    ],
)
def test_steps_without_a_way_back_need_a_second_person(name: str, request_: Any, needed: bool) -> None:
    assert STEPS[name].needs(request_) is needed


def test_what_needs_a_second_person_needs_an_admin_and_nothing_that_goes_back_does() -> None:
    for name in STEPS:
        assert name in ELEVATED or ROLES[name] == ROLES["ApproveCall"], name
    assert not {"RollbackPhase", "SetFlag", "SetCanary", "LiftHold", "StopCanaryAuto"} & set(STEPS)

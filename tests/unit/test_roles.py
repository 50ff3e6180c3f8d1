"""The role that each call of the operator's API needs: every method and every role, from the descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from libs.identity.principal import Principal, Role, current
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.api.roles import ELEVATED, ROLES, RoleMissing, actor_of, check_role, guarded
from services.router.control.codec import job_id

SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"]
METHODS, METHODS_BY_NAME = SERVICE.methods, SERVICE.methods_by_name
HELD = [(), (Role.VIEWER,), (Role.OPERATOR,), (Role.ADMIN,)]
OPEN_TO_OPERATORS = ("RollbackPhase", "SetFlag", "SetCanary", "LiftHold", "StopCanaryAuto")
"""Methods by which an operator stops or undoes."""


@pytest.fixture(autouse=True)
def own_context() -> Iterator[None]:
    token = current.set(current.get())
    yield
    current.reset(token)


def act_as(*roles: Role, subject: str = "idp:ann") -> None:
    current.set(Principal(subject, roles=frozenset(roles)))


def allowed(name: str, request: Any) -> bool:
    with suppress(RoleMissing):
        check_role(name, request)
        return True
    return False


def empty(name: str) -> Any:
    return GetMessageClass(METHODS_BY_NAME[name].input_type)()


def test_every_method_names_its_role() -> None:
    assert set(ROLES) == {method.name for method in METHODS}


@pytest.mark.parametrize("held", HELD, ids=lambda held: held[0].name if held else "none")
@pytest.mark.parametrize("name", sorted(ROLES))
def test_a_method_is_open_to_its_role_and_those_above(name: str, held: tuple[Role, ...]) -> None:
    act_as(*held)
    assert allowed(name, empty(name)) == any(role >= ROLES[name] for role in held)


def test_no_method_that_names_an_actor_is_open_to_a_viewer() -> None:
    changes = [method.name for method in METHODS if "actor" in method.input_type.fields_by_name]
    assert changes
    assert [name for name in changes if ROLES[name] is Role.VIEWER] == []


@pytest.mark.parametrize("name", OPEN_TO_OPERATORS)
def test_an_operator_can_always_go_back(name: str) -> None:
    assert ROLES[name] <= Role.OPERATOR and name not in ELEVATED


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("AdvancePhase", pb.AdvancePhaseRequest(to=pb.PHASE_SHADOW, override=True)),
        ("AdvancePhase", pb.AdvancePhaseRequest(to=pb.PHASE_DEPRECATED)),
        ("StartJob", pb.StartJobRequest(kind="seize")),
        ("StartJob", pb.StartJobRequest(kind="recover")),
        ("ChangeJob", pb.ChangeJobRequest(id=job_id("seize", 7), action=pb.ChangeJobRequest.ACTION_RESUME)),
        ("ChangeJob", pb.ChangeJobRequest(id=job_id("recover", 7), action=pb.ChangeJobRequest.ACTION_RESUME)),
    ],
    ids=["override", "DEPRECATED", "seize", "recover", "resume of seize", "resume of recover"],
)
def test_a_step_without_a_way_back_needs_an_admin(name: str, request_: Any) -> None:
    act_as(Role.OPERATOR)
    assert allowed(name, type(request_)()) and not allowed(name, request_)
    act_as(Role.ADMIN)
    assert allowed(name, request_)


@pytest.mark.parametrize("action", ["ACTION_PAUSE", "ACTION_CANCEL", "ACTION_TUNE"])
def test_an_operator_can_always_stop_a_job(action: str) -> None:
    act_as(Role.OPERATOR)
    assert allowed(
        "ChangeJob", pb.ChangeJobRequest(id=job_id("seize", 7), action=pb.ChangeJobRequest.Action.Value(action))
    )
    resumed = pb.ChangeJobRequest(id=job_id("backfill", 7), action=pb.ChangeJobRequest.ACTION_RESUME)
    assert allowed("ChangeJob", resumed)


async def test_a_refused_method_does_not_run() -> None:
    ran: list[str] = []

    async def method(request: Any, context: Any) -> None:
        ran.append("call")

    async def stream(request: Any, context: Any) -> AsyncIterator[int]:
        ran.append("stream")
        yield 1

    act_as(Role.VIEWER)
    with pytest.raises(RoleMissing, match="DropParked needs the role admin; the roles of this caller: viewer"):
        await guarded("DropParked", method)(None, None)
    with pytest.raises(RoleMissing):
        await anext(guarded("Probe", stream)(None, None))
    assert ran == []
    act_as(Role.ADMIN)
    await guarded("DropParked", method)(None, None)
    assert [one async for one in guarded("Probe", stream)(None, None)] == [1]


def test_a_method_without_a_role_is_refused_to_an_admin() -> None:
    act_as(Role.ADMIN)
    with pytest.raises(RoleMissing, match="names no role"):
        check_role("Forgotten", None)


def test_the_journal_has_the_authenticated_subject_and_the_claimed_name_beside_it() -> None:
    act_as(Role.OPERATOR)
    assert actor_of("bob@laptop") == "idp:ann (bob@laptop)"
    assert actor_of("") == "idp:ann"
    act_as(Role.OPERATOR, subject="i" * 120)
    assert actor_of("bob@laptop") == "i" * 120


def test_without_authentication_the_claimed_name_is_the_actor() -> None:
    assert actor_of("bob@laptop") == "bob@laptop"

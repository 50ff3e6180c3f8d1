"""The role that each call of the operator's API needs.

A method names its role as an option in the contract (`baton.options.v1.role`). A method without one is refused to every
caller, so a new method is closed until somebody decides. Some requests of a method need more than the method itself:
`ELEVATED` has them. Rollback and hold are never among them: an operator can always send traffic back to A.

A listener without authentication gives every caller all roles (`libs.identity.principal.ANONYMOUS`).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from functools import wraps
from typing import Any

from libs.errors import BatonError
from libs.identity.principal import ANONYMOUS_SUBJECT, Role, current_principal
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.pb.baton.options.v1 import options_pb2
from libs.rpc.errors import Context
from services.router.core.jobs import MAX_ACTOR_CHARACTERS
from services.router.flows.jobs.recover import RECOVER, SEIZE

_SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"]

ROLES: Mapping[str, Role] = {
    method.name: Role(method.GetOptions().Extensions[options_pb2.role])
    for method in _SERVICE.methods
    if method.GetOptions().Extensions[options_pb2.role]
}
"""Role by method."""

_ADMIN_JOBS = frozenset({SEIZE, RECOVER})


def resumes_admin_job(request: pb.ChangeJobRequest) -> bool:
    """Whether it continues a seizure or a recovery."""
    # The id of a job begins with its kind.
    kind, _, _ = request.id.rpartition("-")
    return request.action == pb.ChangeJobRequest.ACTION_RESUME and kind in _ADMIN_JOBS


ELEVATED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "AdvancePhase": (
        lambda request: request.override or request.to == pb.PHASE_DEPRECATED,
        "AdvancePhase with an override or to DEPRECATED",
    ),
    "StartJob": (lambda request: request.kind in _ADMIN_JOBS, "a job that recovers or seizes a store"),
    "ChangeJob": (resumes_admin_job, "resuming a job that recovers or seizes a store"),
    **dict.fromkeys(("ReadEvents", "ShowRecord", "ListConflicts"), (lambda request: request.reveal, "showing secrets")),
}
"""Requests that need an admin, and their name in a refusal, by method."""


class RoleMissing(BatonError):
    """The caller lacks a role that this call needs."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_MISSING"


def guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method behind a check of its caller's role, which raises RoleMissing before the method runs."""
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            check_role(name, request)
            async for answer in method(request, context):
                yield answer

        return stream

    @wraps(method)
    async def call(request: Any, context: Context) -> Any:
        check_role(name, request)
        return await method(request, context)

    return call


def check_role(name: str, request: Any) -> None:
    """Raises RoleMissing."""
    role, shown = ROLES.get(name), name
    if role is None:
        raise RoleMissing(f"{name} names no role, so no caller may use it")
    if name in ELEVATED and ELEVATED[name][0](request):
        role, shown = Role.ADMIN, ELEVATED[name][1]
    principal = current_principal()
    if not principal.has(role):
        held = ", ".join(sorted(one.name.lower() for one in principal.roles)) or "none"
        raise RoleMissing(f"{shown} needs the role {role.name.lower()}; the roles of this caller: {held}")


def actor_of(claimed: str) -> str:
    """The actor for the journal: the authenticated subject, with the name that the caller gives itself beside it.

    Without authentication it is that name alone.
    """
    subject = current_principal().subject
    if subject == ANONYMOUS_SUBJECT:
        return claimed
    beside = f"{subject} ({claimed})"
    return beside if claimed.strip() and len(beside) <= MAX_ACTOR_CHARACTERS else subject

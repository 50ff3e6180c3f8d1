"""The principal of a client's call between Baton's processes, in metadata of internal listeners.

A router has authenticated the client; a store believes the router because the internal listener authenticates it. A
store that passes a call on has authenticated its client too, and a router's internal listener believes the store. A
call without a principal is the other process's own; a router's internal listener serves no such call. Public listeners
never read this metadata.
"""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.message import DecodeError

from libs.errors import InvalidField
from libs.identity.errors import Unauthenticated
from libs.identity.port import Credentials
from libs.identity.principal import ANONYMOUS, Principal, Role
from libs.ownership.limits import MAX_PRINCIPAL_BYTES
from libs.pb.baton.identity.v1 import identity_pb2 as pb
from libs.rpc import metadata

_PREPARED = 4096
"""Number of principals whose metadata, or whose meaning, is kept."""

_ROLES = {pb.ROLE_VIEWER: Role.VIEWER, pb.ROLE_OPERATOR: Role.OPERATOR, pb.ROLE_ADMIN: Role.ADMIN}
_NUMBERS = {role: number for number, role in _ROLES.items()}


@lru_cache(_PREPARED)
def pair_of(principal: Principal) -> tuple[str, bytes]:
    """The metadata that carries the principal."""
    message = pb.Principal(
        subject=principal.subject,
        accounts=sorted(principal.accounts),
        roles=[_NUMBERS[role] for role in sorted(principal.roles)],
    )
    return metadata.PRINCIPAL_BIN, message.SerializeToString()


@lru_cache(_PREPARED)
def principal_of(value: bytes) -> Principal:
    """Raises InvalidField."""
    try:
        message = pb.Principal.FromString(value)
    except DecodeError:
        raise InvalidField(metadata.PRINCIPAL_BIN, f"{len(value)} bytes", "a message of baton.identity.v1") from None
    _check(metadata.PRINCIPAL_BIN, message.subject)
    # Unknown roles, of a newer release, grant nothing here.
    roles = frozenset(_ROLES[number] for number in message.roles if number in _ROLES)
    return Principal(message.subject, frozenset(message.accounts), roles)


class PrincipalMissing(Unauthenticated):
    """This listener serves calls that a store passes on with their caller's identity."""

    reason = "PRINCIPAL_MISSING"


class ForwardedPrincipal:
    """The authenticator of an internal listener, whose callers have shown its token."""

    def __init__(self, *, required: bool = False) -> None:
        """`required`: refuse a call without a principal, and the form of earlier routers, which grants every role."""
        self._required = required

    def __repr__(self) -> str:
        return f"<ForwardedPrincipal required={self._required}>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Raises InvalidField, PrincipalMissing."""
        earlier: str | None = None
        for name, value in credentials.invocation_metadata() or ():
            if name == metadata.PRINCIPAL_BIN:
                return principal_of(value)
            if name == metadata.PRINCIPAL:
                earlier = value
        if self._required:
            raise PrincipalMissing()
        return ANONYMOUS if earlier is None else _of_an_earlier_router(earlier)


def _of_an_earlier_router(subject: str) -> Principal:
    """Routers of the release before send only the subject. They serve every caller all records."""
    _check(metadata.PRINCIPAL, subject)
    return Principal(subject, roles=ANONYMOUS.roles)


def _check(name: str, subject: str) -> None:
    if not 0 < len(subject.encode(errors="replace")) <= MAX_PRINCIPAL_BYTES:
        raise InvalidField(name, subject, f"1 to {MAX_PRINCIPAL_BYTES} bytes")

"""The authenticated caller of a call: its subject, its accounts and its roles."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

from libs.ownership import model
from libs.ownership.limits import MAX_PRINCIPAL_BYTES

ANONYMOUS_SUBJECT = model.ANONYMOUS
"""Subject of a caller without an identity. It is reserved: every other subject has an issuer and a colon."""


class Role(IntEnum):
    """A role includes the lower ones."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Principal:
    subject: str
    """"anonymous", or the result of `subject_of`. It is the principal of served requests."""
    accounts: frozenset[str] = frozenset()
    roles: frozenset[Role] = frozenset()
    expires_at: float | None = field(default=None, compare=False)
    """UNIX time in seconds until which the caller has proved this identity; None: as long as the call takes. It is not
    sent to the stores: a listener that ends a stream ends it for them too."""

    @property
    def reachable(self) -> frozenset[str] | None:
        """Accounts whose records the caller may reach; None: all records."""
        return None if self.has(Role.ADMIN) else self.accounts

    @property
    def is_anonymous(self) -> bool:
        return self.subject == ANONYMOUS_SUBJECT

    def has(self, role: Role) -> bool:
        """Whether one of the roles includes `role`."""
        return role in self.roles or any(one >= role for one in self.roles)


ANONYMOUS = Principal(ANONYMOUS_SUBJECT, roles=frozenset({Role.ADMIN}))
"""Every caller of a listener without authentication, and the process itself. It may do everything."""

current: ContextVar[Principal] = ContextVar("current", default=ANONYMOUS)
"""The principal of the running call. The gate sets it for calls and streams; tasks that a call starts inherit it."""


def current_principal() -> Principal:
    return current.get()


def subject_of(issuer: str, subject: str) -> str:
    """The subject with its issuer: "issuer:subject". If it is long or not printable, its SHA-256 with the prefix
    "sha256:", which is never as long as an unhashed subject may be."""
    whole = f"{issuer}:{subject}"
    data = whole.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_PRINCIPAL_BYTES and whole.isprintable():
        return whole
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

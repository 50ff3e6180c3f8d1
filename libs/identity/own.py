"""Calls of a process to its own public listener, such as a router's synthetic calls.

They carry a random token, which never leaves the process but for such calls.
"""

from __future__ import annotations

import hmac
import secrets

from libs.identity.bearer import bearer_of
from libs.identity.errors import Unauthenticated
from libs.identity.port import AUTHORIZATION, Authenticator, Credentials
from libs.identity.principal import Principal, Role, subject_of

OWN = Principal(subject_of("baton", "router"), roles=frozenset({Role.ADMIN}))


class WithOwnCalls:
    """An authenticator that accepts the process's own calls too."""

    def __init__(self, others: Authenticator) -> None:
        self._others = others
        self._token = secrets.token_urlsafe(32)

    def __repr__(self) -> str:
        return f"<WithOwnCalls {self._others!r}>"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of the process's own calls."""
        return ((AUTHORIZATION, f"Bearer {self._token}"),)

    async def authenticate(self, credentials: Credentials) -> Principal:
        try:
            return await self._others.authenticate(credentials)
        except Unauthenticated:
            if self._is_own(credentials):
                return OWN
            raise

    def _is_own(self, credentials: Credentials) -> bool:
        try:
            return hmac.compare_digest(bearer_of(credentials.invocation_metadata()), self._token)
        except Unauthenticated:
            return False

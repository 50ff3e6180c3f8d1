"""Authentication that is not required yet: a call without credentials is anonymous, and may do everything."""

from __future__ import annotations

from libs.identity.errors import CertificateMissing, TokenMissing
from libs.identity.port import Authenticator, Credentials
from libs.identity.principal import ANONYMOUS, Principal


class OptionalAuthentication:
    def __init__(self, required: Authenticator) -> None:
        self._required = required

    def __repr__(self) -> str:
        return f"<OptionalAuthentication {self._required!r}>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Wrong credentials are refused, so that a client learns of them before they are required."""
        try:
            return await self._required.authenticate(credentials)
        except (TokenMissing, CertificateMissing):
            return ANONYMOUS

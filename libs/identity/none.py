"""No authentication: every caller is anonymous and may do everything. The default on loopback."""

from __future__ import annotations

from libs.identity.port import Credentials
from libs.identity.principal import ANONYMOUS, Principal


class NoAuthentication:
    def __repr__(self) -> str:
        return "<NoAuthentication>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        return ANONYMOUS

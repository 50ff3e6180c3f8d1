"""The proof of the caller of a stream. It can end before the stream does.

A token expires; it or its certificate is revoked; the accounts or roles of its holder change. So the credentials that
opened a stream are checked again while it runs. If they show something else, it ends. The caller can call again with
those that it has now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from libs.errors import BatonError
from libs.identity.errors import TokenExpired, Unauthenticated
from libs.identity.port import Credentials
from libs.identity.principal import Principal

LOOK_SECONDS = 1.0
"""Interval between two looks at the credentials of a stream."""


Authenticate = Callable[[Credentials], Awaitable[Principal]]


class IdentityChanged(BatonError):
    """The accounts or roles of the caller have changed since the stream began: call again."""

    code = "UNAVAILABLE"
    reason = "IDENTITY_CHANGED"
    retry_seconds = 1.0


class Proof:
    """The proof of one stream's caller."""

    def __init__(self, authenticate: Authenticate, principal: Principal) -> None:
        self._authenticate = authenticate
        self._principal = principal
        self.ended: BatonError | None = None
        """Why it is no longer valid."""

    async def wait(self, credentials: Credentials) -> None:
        """Return when it has ended."""
        while self.ended is None:
            expires_at = self._principal.expires_at
            left = LOOK_SECONDS if expires_at is None else max(expires_at - time.time(), 0.0)
            await asyncio.sleep(min(LOOK_SECONDS, left))
            if expires_at is not None and left <= LOOK_SECONDS:
                self.ended = TokenExpired()
            else:
                self.ended = await self._look(credentials)

    async def _look(self, credentials: Credentials) -> BatonError | None:
        try:
            found = await self._authenticate(credentials)
        except Unauthenticated as error:
            return error
        except BatonError:
            # It cannot be decided now, for example because the issuer does not answer. The next look may.
            return None
        return None if found == self._principal else IdentityChanged()

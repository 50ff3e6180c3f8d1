"""The token of a call: authorization: Bearer TOKEN (RFC 6750)."""

from __future__ import annotations

from typing import Any

from libs.identity.errors import TokenMalformed, TokenMissing
from libs.identity.port import AUTHORIZATION

_SCHEME = "bearer "
_SCHEME_CHARACTERS = len(_SCHEME)


def bearer_of(pairs: Any) -> str:
    """Raises TokenMissing; TokenMalformed for another scheme, and for several tokens, since a proxy may have checked
    another one than this process would."""
    found: str | None = None
    for name, value in pairs or ():
        if name == AUTHORIZATION:
            if found is not None or not isinstance(value, str):
                raise TokenMalformed()
            found = value
    if found is None:
        raise TokenMissing()
    if found[:_SCHEME_CHARACTERS].lower() != _SCHEME:
        raise TokenMalformed()
    token = found[_SCHEME_CHARACTERS:].strip()
    if not token or not token.isascii() or " " in token:
        raise TokenMalformed()
    return token

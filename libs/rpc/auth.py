"""Access to internal and control listeners by a token."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

from libs.errors import BatonError
from libs.identity.port import AUTHORIZATION
from libs.rpc import metadata
from libs.tls.files import is_open_to_all

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 512
MAX_BEARER_CHARACTERS = 6 * 1024
"""Maximum length of a caller's own token. It fits into the metadata of a call."""


class TokenRefused(BatonError):
    """This listener requires the shared token in the metadata baton-token."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_REFUSED"


class TokenUnfit(BatonError):
    """The token's file cannot be used."""


def read_token(path: Path, most: int = MAX_TOKEN_CHARACTERS) -> bytes:
    """Read the token, of at most `most` characters, from the file. Raises TokenUnfit.

    A file that every user of the machine can read or change is refused.
    """
    try:
        if is_open_to_all(path):
            raise TokenUnfit(f"every user of this machine can read or change the token file {path}: chmod 600 {path}")
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenUnfit(f"the token file {path} cannot be read: {error}") from None
    if not MIN_TOKEN_CHARACTERS <= len(token) <= most or not (token.isascii() and token.isprintable()):
        raise TokenUnfit(
            f"the token in {path} has {len(token)} characters: it must be one line of {MIN_TOKEN_CHARACTERS} to"
            f" {most} printable ASCII characters"
        )
    return token.encode()


def operator_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call of the control listener: the caller's own token, and the same as a shared one, since the
    caller does not know which of the two the router requires. "" is no token."""
    if not token:
        return ()
    own = ((AUTHORIZATION, f"Bearer {token}"),)
    return own if len(token) > MAX_TOKEN_CHARACTERS else (*own, (metadata.TOKEN, token))


def check_token(found: Any, token: bytes) -> None:
    """Check that a call's metadata carries the token. Raises TokenRefused."""
    for name, value in found or ():
        if name == metadata.TOKEN:
            shown = value if isinstance(value, bytes) else value.encode()
            if hmac.compare_digest(shown, token):
                return
            break
    raise TokenRefused()

"""Access to internal listeners by a shared token."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

from libs.errors import BatonError
from libs.rpc import metadata
from libs.tls.files import is_open_to_all

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 512


class TokenRefused(BatonError):
    """This listener requires the shared token in the metadata baton-token."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_REFUSED"


class TokenUnfit(BatonError):
    """The token's file cannot be used."""


def read_token(path: Path) -> bytes:
    """Read the token from the file. Raises TokenUnfit.

    A file that every user of the machine can read or change is refused.
    """
    try:
        if is_open_to_all(path):
            raise TokenUnfit(f"every user of this machine can read or change the token file {path}: chmod 600 {path}")
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenUnfit(f"the token file {path} cannot be read: {error}") from None
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
        raise TokenUnfit(
            f"the token in {path} has {len(token)} characters: it must be one line of {MIN_TOKEN_CHARACTERS} to"
            f" {MAX_TOKEN_CHARACTERS} printable ASCII characters"
        )
    return token.encode()


def check_token(found: Any, token: bytes) -> None:
    """Check that a call's metadata carries the token. Raises TokenRefused."""
    for name, value in found or ():
        if name == metadata.TOKEN:
            shown = value if isinstance(value, bytes) else value.encode()
            if hmac.compare_digest(shown, token):
                return
            break
    raise TokenRefused()

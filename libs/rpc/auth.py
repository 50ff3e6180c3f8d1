"""Who may use an internal listener: whoever shows the token. And which addresses need one."""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path
from typing import Any

from libs.errors import BatonError
from libs.rpc import metadata

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 512


class TokenRefused(BatonError):
    """This listener asks for the shared token in the metadata baton-token."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_REFUSED"


class TokenUnfit(BatonError):
    """The token's file cannot be used."""


def read_token(path: Path) -> bytes:
    """The token in the file's first line. Raises TokenUnfit."""
    try:
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
    """`found`: a call's metadata. Raises TokenRefused unless the token is in it."""
    for name, value in found or ():
        if name == metadata.TOKEN:
            shown = value if isinstance(value, bytes) else value.encode()
            if hmac.compare_digest(shown, token):
                return
            break
    raise TokenRefused()


def is_loopback(address: str) -> bool:
    """Whether a listener at "host:port" or "unix:path" can be reached from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

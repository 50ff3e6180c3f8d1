"""Authentication by tokens from a file, for small installations, scripts and tests.

[[token]]
subject = "ci"                       # the principal is "tokens:ci"
sha256 = "9f86d081884c7d65..."       # printf %s TOKEN | sha256sum; or token = "..." in plain text
accounts = ["acme"]
roles = ["operator"]
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libs.clock import Clock
from libs.identity.bearer import bearer_of
from libs.identity.errors import TokenUnknown
from libs.identity.files import read_entries
from libs.identity.grants import read_grant
from libs.identity.port import Credentials
from libs.identity.principal import Principal, subject_of
from libs.secret_file import SecretFile

ISSUER = "tokens"
MIN_TOKEN_CHARACTERS = 16
_NAMES = frozenset({"subject", "token", "sha256", "accounts", "roles"})
_SHA256 = re.compile(r"[0-9a-f]{64}")

Known = Mapping[bytes, tuple[bytes, Principal]]
"""The hash and the principal, by the token's hash."""


class TokenFile:
    """Keeps only hashes of the tokens. Looking a hash up shows nothing about the token by its time."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises UnfitFile."""
        self._file = SecretFile(path, read_tokens, clock)

    def __repr__(self) -> str:
        return f"<TokenFile {self._file.path}>"

    async def authenticate(self, credentials: Credentials) -> Principal:
        digest = hashlib.sha256(bearer_of(credentials.invocation_metadata()).encode()).digest()
        known, principal = self._file.content.get(digest, (b"", None))
        if principal is None or not hmac.compare_digest(known, digest):
            raise TokenUnknown()
        return principal


def read_tokens(data: bytes) -> Known:
    """Raises ValueError, which shows no token."""
    known: dict[bytes, tuple[bytes, Principal]] = {}
    for number, entry in enumerate(read_entries(data, "token", _NAMES), 1):
        try:
            digest = _digest(entry)
            subject = entry.get("subject")
            if not isinstance(subject, str) or not subject:
                raise ValueError("subject: give the name of the token's holder")
            if digest in known:
                raise ValueError("the token is the same as that of another entry")
            known[digest] = digest, read_grant(subject_of(ISSUER, subject), entry)
        except ValueError as error:
            raise ValueError(f"[[token]] number {number}: {error}") from None
    return known


def _digest(entry: Mapping[str, Any]) -> bytes:
    token, digest = entry.get("token"), entry.get("sha256")
    if (token is None) == (digest is None):
        raise ValueError("give either token or sha256")
    if digest is not None:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest.lower()):
            raise ValueError("sha256: give the 64 hexadecimal digits of the token's SHA-256")
        return bytes.fromhex(digest)
    if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARACTERS or not _is_word(token):
        raise ValueError(f"token: give at least {MIN_TOKEN_CHARACTERS} printable ASCII characters without spaces")
    return hashlib.sha256(token.encode()).digest()


def _is_word(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token

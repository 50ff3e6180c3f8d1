"""Key rings: the secret keys with which events are signed and checked, from a file that is read again when it changes.

The file is TOML. It names each key by an id, and the id of the key that signs:

    sign = "2026-11"

    [keys]
    2026-10 = "base64 of at least 32 random bytes"
    2026-11 = "base64 of at least 32 random bytes"

All keys of the ring are accepted, so keys are rotated without a gap: add the new key everywhere, then let it sign, then
remove the old one. A changed file that cannot be used is reported, and the last good ring stays in use.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libs.clock import Clock
from libs.errors import BatonError
from libs.secret_file import SecretFile

MIN_KEY_BYTES = 32
MAX_KEYS = 16

_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_FIELDS = frozenset({"sign", "keys"})


class KeyRingUnfit(BatonError):
    """The file of event keys cannot be used."""

    code = "FAILED_PRECONDITION"
    reason = "EVENT_KEYS_UNFIT"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """`sign`: id of the key that signs. `keys`: all accepted keys, by id."""

    sign: str
    keys: Mapping[str, bytes] = field(repr=False)


def open_key_ring(path: Path, clock: Clock) -> SecretFile[KeyRing]:
    """Raises KeyRingUnfit. Its message never holds a key."""
    return SecretFile(path, read_key_ring, clock, "the event keys", KeyRingUnfit)


def read_key_ring(data: bytes) -> KeyRing:
    """Raises ValueError. Its message never holds a key."""
    try:
        found = tomllib.loads(data.decode())
    except ValueError:
        # The parser's message may quote a line of the file.
        raise ValueError("it is not TOML in UTF-8") from None
    if unknown := sorted(set(found) - _FIELDS):
        raise ValueError(f"it has the field {unknown[0]!r}: it has sign and a table keys")
    table = found.get("keys")
    if not isinstance(table, dict) or not 1 <= len(table) <= MAX_KEYS:
        raise ValueError(f"it needs a table keys with 1 to {MAX_KEYS} keys by id")
    keys = {name: _key(name, value) for name, value in table.items()}
    if len(set(keys.values())) < len(keys):
        raise ValueError("it has one key under two ids")
    sign = found.get("sign")
    if not isinstance(sign, str) or sign not in keys:
        raise ValueError(f"sign is {sign!r}, it must be the id of one of the keys")
    return KeyRing(sign, keys)


def _key(name: str, value: object) -> bytes:
    if not _ID.fullmatch(name):
        raise ValueError(f"the id {name!r} must be 1 to 32 letters, digits, _ and -")
    try:
        key = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"key {name} must be base64 of at least {MIN_KEY_BYTES} random bytes")
    return key

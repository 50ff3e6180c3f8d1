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
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.clock import Clock
from libs.errors import BatonError
from libs.tls.files import is_open_to_all

log = logging.getLogger(__name__)

MIN_KEY_BYTES = 32
MAX_KEYS = 16
MAX_FILE_BYTES = 64 * 1024
LOOK_SECONDS = 1.0
"""Interval between two looks at the file."""

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


def read_key_ring(path: Path) -> KeyRing:
    """Raises KeyRingUnfit. Its message never holds a key."""
    try:
        if is_open_to_all(path):
            raise KeyRingUnfit(f"every user of this machine can read or change the event keys {path}: chmod 600 {path}")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise KeyRingUnfit(f"the event keys {path} have more than {MAX_FILE_BYTES} bytes")
        found = tomllib.loads(content.decode())
    except OSError as error:
        raise KeyRingUnfit(f"the event keys {path} cannot be read: {error.strerror}") from None
    except ValueError:
        # The parser's message may quote a line of the file.
        raise KeyRingUnfit(f"the event keys {path} are not TOML in UTF-8") from None
    return _parse(path, found)


def _parse(path: Path, found: Mapping[str, Any]) -> KeyRing:
    if unknown := sorted(set(found) - _FIELDS):
        raise KeyRingUnfit(f"the event keys {path} have the field {unknown[0]!r}: they have sign and a table keys")
    table = found.get("keys")
    if not isinstance(table, dict) or not 1 <= len(table) <= MAX_KEYS:
        raise KeyRingUnfit(f"the event keys {path} need a table keys with 1 to {MAX_KEYS} keys by id")
    keys = {name: _key(path, name, value) for name, value in table.items()}
    if len(set(keys.values())) < len(keys):
        raise KeyRingUnfit(f"the event keys {path} have one key under two ids")
    sign = found.get("sign")
    if not isinstance(sign, str) or sign not in keys:
        raise KeyRingUnfit(f"the event keys {path}: sign is {sign!r}, it must be the id of one of the keys")
    return KeyRing(sign, keys)


def _key(path: Path, name: str, value: object) -> bytes:
    if not _ID.fullmatch(name):
        raise KeyRingUnfit(f"the event keys {path}: the id {name!r} must be 1 to 32 letters, digits, _ and -")
    try:
        key = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < MIN_KEY_BYTES:
        raise KeyRingUnfit(f"the event keys {path}: key {name} must be base64 of at least {MIN_KEY_BYTES} random bytes")
    return key


class KeyFile:
    """The ring in a file. A changed file is read within LOOK_SECONDS of the next use."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises KeyRingUnfit."""
        self._path = path
        self._clock = clock
        self._seen = _stamp(path)
        self._ring = read_key_ring(path)
        self._look_at = clock.monotonic() + LOOK_SECONDS
        self.trouble = ""
        """Why the changed file is not used; "" if the ring is that of the file."""

    def __repr__(self) -> str:
        return f"<KeyFile {self._path} {self._ring!r}>"

    @property
    def ring(self) -> KeyRing:
        if self._clock.monotonic() >= self._look_at:
            self._look_at = self._clock.monotonic() + LOOK_SECONDS
            self._look()
        return self._ring

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._ring = read_key_ring(self._path)
        except KeyRingUnfit as error:
            self.trouble = error.message
            log.error("the last good keys of events stay in use: %s", error.message)
        else:
            self.trouble = ""
            log.info("event keys: read again, %s signs, accepted are %s", self._ring.sign, ", ".join(self._ring.keys))


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes with the file; () if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
